"""``python -m var_train.run``: trains a tokenizer and a transformer on images, and draws."""

from var_train.commands.pipeline import main

if __name__ == "__main__":
    main()
