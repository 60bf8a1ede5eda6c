"""Is the second picture the first one with boxes drawn where the objects are?

python .ci/check_result.py example_inputs/street.jpg result.jpg
"""

import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from nanodet import NanoDet  # noqa: E402

given, result = (cv2.imread(path) for path in sys.argv[1:])
if result is None or result.shape != given.shape:
    sys.exit(f"{sys.argv[2]} is not a picture of the input's size")
found = NanoDet(ROOT / "object_detection_nanodet_2022nov.onnx").detect(given)
changed = cv2.absdiff(given, result).max(axis=2) > 60
for left, top, right, bottom in np.clip(np.rint(found.xyxy).astype(int), 0, None):
    if changed[top:bottom, left : left + 2].mean() < 0.5:
        sys.exit(f"no box is drawn at {left}, {top}, {right}, {bottom}")
if not len(found) or changed.mean() > 0.2:
    sys.exit(f"{len(found)} objects, {changed.mean():.0%} of the picture changed")
print(f"{sys.argv[2]}: {len(found)} boxes are drawn, {changed.mean():.1%} of the picture changed")
