"""The web side of Graftworks: one Django app that is also the project package."""
