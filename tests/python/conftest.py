"""Where the tests find the package: the build's, with the extension; else the source, whose pure Python part works alone."""
import os
import pathlib
import sys

SOURCE = pathlib.Path(os.environ.get("KVCAL_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BUILT = pathlib.Path(os.environ.get("KVCAL_BUILD", SOURCE / "build" / "release")).resolve() / "python"
sys.path.insert(0, str(BUILT if BUILT.is_dir() else SOURCE / "apps" / "python"))
