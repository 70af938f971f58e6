# %% [markdown]
# # other_tools

# %%
print(1)
