"""Image models: Vim, VMamba, and sequences of patches or pixels over any mixer of the core."""
