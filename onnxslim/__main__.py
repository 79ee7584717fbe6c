"""`python -m onnxslim`."""

from onnxslim.cli import main

if __name__ == "__main__":
    main()
