"""Extensions from outside the package, each in one file, as the tests use them."""
