"""What of a vocabulary is padding: rows that families add so that their matrices have round sizes."""

import re

MAX_PADDING = 128  # rows by which two vocabularies of one family differ (Qwen2.5: 151,936 and 152,064)
PADDING = re.compile(rb"\[PAD\d+\]|<\|?(unused|reserved|dummy)[_a-z]*\d+\|?>")
