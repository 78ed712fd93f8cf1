"""`python -m jubal` is `jubal`."""

from jubal.cli import main

main()
