"""What a hospital's systems hold, made into folders and tables that a dataset is registered from."""
