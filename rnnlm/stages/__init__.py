"""What each stage does, with the objects that `assemble` and the edges give it. Importing a stage loads nothing heavy."""
