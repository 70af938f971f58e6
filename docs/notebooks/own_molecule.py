# %% [markdown]
# # own_molecule

# %%
print(1)
