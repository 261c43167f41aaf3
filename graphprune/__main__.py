"""`python -m graphprune`: the command line, where its script is not on the path.

Start reading at `graphprune.supervised.main`.
"""

from .supervised import main

if __name__ == "__main__":
    main()
