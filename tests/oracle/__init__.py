"""The correctness oracle: tiny random Llama 4 models, a plain numpy model, and stored answers."""
