"""Every experiment in one run, so that cells that several of them share are computed once and time left is known.

python -m benchmarks.experiments core     main, aggregation, alignment, stages, no semantics: 5 seeds
python -m benchmarks.experiments all      these and the others, and the online experiment
python -m benchmarks.experiments logs     KuaiRand and Foursquare, of which `SCENERANK_DATA` says where they are
python -m benchmarks.experiments msr      LLM4MSR and backbones: city, public logs, a published protocol, prompts, scale
"""

from __future__ import annotations

import sys

from benchmarks.experiments import (
    larr_aggregation,
    larr_alignment,
    larr_cold_start,
    larr_equivalence,
    larr_foursquare,
    larr_growth,
    larr_kuairand,
    larr_language_model,
    larr_main,
    larr_new_words,
    larr_no_semantics,
    larr_pairs,
    larr_scene_features,
    larr_stages,
    msr_city,
    msr_cold_scenario,
    msr_controls,
    msr_logs,
    msr_negative_transfer,
    msr_prompts,
    msr_scale,
    msr_scenario_wise,
    msr_similarity,
    online_ab,
)
from benchmarks.experiments.run import arguments, main

CORE = (larr_main, larr_aggregation, larr_alignment, larr_stages, larr_no_semantics)
OTHERS = (
    larr_cold_start,
    larr_new_words,
    larr_pairs,
    larr_language_model,
    larr_scene_features,
    larr_growth,
    larr_equivalence,
)
MSR = (msr_city, msr_controls, msr_similarity, msr_cold_scenario, msr_negative_transfer)
SETS = {
    "core": [module.experiment for module in CORE],
    "all": [module.experiment for module in (*CORE, *OTHERS)],
    "logs": [larr_kuairand.experiment],
    "msr": [*(module.experiment for module in MSR), *msr_logs.EXPERIMENTS],
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in SETS:
        sys.exit(f"say which set of experiments: {', '.join(SETS)}")
    chosen = sys.argv.pop(1)
    command = f"python -m {__package__} {chosen}"
    main(*SETS[chosen], command=command)
    # Their cells are of another kind.
    if chosen == "all":
        online_ab.main(*arguments(None, command))
    if chosen == "logs":
        larr_foursquare.main(*arguments(None, command))
    if chosen == "msr":
        for module in (msr_scenario_wise, msr_prompts, msr_scale):
            module.main(*arguments(None, command))
