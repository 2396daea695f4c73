"""`python -m hybridnorm`."""

from hybridnorm.cli import main

if __name__ == "__main__":
    main()
