"""``python -m fastmix.methods``: print the table of all methods."""

from fastmix.methods.table import markdown

if __name__ == "__main__":
    print(markdown())
