"""Writes the word lists and the lists made of them into src/tastemaker/data/prompt_lists.json, from prompts.json.

The other lists there are verbatim from the papers and their repositories, and are left as they are. The plurals are
inflect's, as in the public DDPO code (`counting` in ddpo_pytorch/prompts.py). Run from the repository's root:
python scripts/prompts_lists.py path/to/prompts.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import inflect

LISTS = Path("src/tastemaker/data/prompt_lists.json")
NUMBERS = range(2, 9)
"""Of the public DDPO configuration for counting."""


def main(data: Path) -> None:
    """Adds what is missing; running it again changes nothing."""
    given = json.loads(data.read_text(encoding="utf-8"))
    ddpo, b2, thesis, align, dpok = (given[key] for key in ("ddpo", "b2_diffurl", "thesis", "alignprop", "dpok"))
    engine = inflect.engine()
    numbers = [str(engine.number_to_words(str(number))) for number in NUMBERS]  # type: ignore[arg-type]
    plurals = [str(engine.plural(animal)) for animal in ddpo["counting_animals_repo"]]
    predicates = b2["template_3_predicates_train"]
    extra = b2["template_3_predicates_test_extra"]
    words = {
        "animal": ("45 animals (DDPO)", "DDPO section 6.1", ddpo["common_animals"]),
        "activity": ("3 activities (DDPO)", ddpo["activities_source"], ddpo["activities"]),
        "counted-animals": ("22 animals, plural (DDPO)", ddpo["counting_animals_source"], plurals),
        "number": ("two to eight (DDPO)", ddpo["counting_template"], numbers),
        "predicate": ("4 predicates (B2-DiffuRL, train)", b2["source"], predicates),
        "predicate-test": ("the 6 of its test list", b2["source"], [*predicates, *extra]),
        "thesis-animal": ("64 animals (thesis, Appendix C)", thesis["source"], thesis["appendix_c_animals"]),
        "thesis-colour": ("8 colours (thesis, Appendix C)", thesis["source"], thesis["appendix_c_colors"]),
    }
    counting = [f"{number} {plural}" for plural in plurals for number in numbers]
    bare = [prompt.replace(" wearing pink sunglasses", "") for prompt in thesis["pink_prompts"]]
    others = [f"A photograph of {engine.a(animal)}." for animal in thesis["appendix_c_animals"]]
    lists = {
        "ddpo-counting": ("22 animals x two to eight (public DDPO code)", ddpo["counting_animals_source"], counting),
        "alignprop-animals-train": (
            "another name of alignprop-animals", align["source"], align["train_animals"],
        ),
        "alignprop-removal": (
            "[concept] and books, with the one concept printed (AlignProp)", align["concept_removal_source"],
            [align["concept_removal_example"]],
        ),
        "alignprop-figures": ("2 HPS prompts of its figures (AlignProp)", align["source"], align["figure_prompts"]),
        "thesis-pink-bare": ("those animals without sunglasses (thesis, evaluation)", thesis["source"], bare),
        "thesis-pink-bare-test": ("64 other animals without sunglasses (thesis)", thesis["source"], others),
        "dpok-rabbit": (
            "the one training prompt of the public DPOK code", dpok["source"], [dpok["single_prompt_default"]],
        ),
    }  # fmt: skip
    content = json.loads(LISTS.read_text(encoding="utf-8"))
    content["words"] = {name: _entry(*entry) for name, entry in words.items()}
    content["lists"] |= {name: _entry(*entry) for name, entry in lists.items()}
    LISTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _entry(summary: str, source: str, prompts: list[str]) -> dict[str, object]:
    return {"source": source, "prompts": prompts, "summary": summary}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
