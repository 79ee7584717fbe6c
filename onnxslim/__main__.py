"""`python -m onnxslim`. Python puts the current folder first, where nothing may run: it is left out again."""

import sys

if __name__ == "__main__":
    from onnxslim.runtime.isolated import module_folders

    sys.path[:] = module_folders()
    from onnxslim.cli import main

    main()
