# %% [markdown]
# # own_pair_potential

# %%
print(1)
