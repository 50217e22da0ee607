"""cria: a tiny Llama 4 that is trained from nothing on data this package draws itself."""
