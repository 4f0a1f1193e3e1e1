"""Language models of short biological and chemical strings: proteins and molecules (SMILES)."""
