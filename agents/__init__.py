"""Learning rules, one file per algorithm; files that start with an underscore are shared by several."""
