"""The code that ships, behind make-believe doors."""
