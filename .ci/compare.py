"""Exit 1 where two scorecards disagree on a verdict on the paper's claims."""

import json
import sys
from pathlib import Path

committed, redrawn = (
    {(v["claim"], v["subject"]): v["verdict"] for v in json.loads(Path(path).read_text()) if v["claim"].startswith("C")}
    for path in sys.argv[1:]
)
for claim in sorted(committed.keys() | redrawn.keys()):
    if committed.get(claim) != redrawn.get(claim):
        print(f"{' '.join(claim)}: committed {committed.get(claim)}, redrawn {redrawn.get(claim)}")
print(f"{len(redrawn)} verdicts redrawn, {sum(committed.get(c) == v for c, v in redrawn.items())} agree")
sys.exit(committed != redrawn or not committed)
