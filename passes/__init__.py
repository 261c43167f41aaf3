"""The passes that come with graphprune: importance, selection, repair and rewrite, one file each."""
