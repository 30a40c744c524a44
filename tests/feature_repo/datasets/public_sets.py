"""Tiny files with the names and columns of the public sets that mapping files are shipped for, every row invented."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

REC = "user_id,item_id,duration_ms,playing_time,timestamp,forward,like,follow,search_item_related,search,click,time"
SRC = (
    "keyword,item_id,click_cnt,search_session_id,item_type,user_id,search_session_timestamp,search_source,"
    "search_session_time"
)
USERS = "user_id,search_active_level,rec_active_level,onehot_feat1,onehot_feat2"
LEVELS = ("first", "second", "third", "fourth")
ITEMS = "item_id,caption,author_id,item_type,upload_time,upload_type," + ",".join(
    f"{level}_level_category_{part}" for level in LEVELS for part in ("id", "name", "name_en")
)
ALI_CCP = (
    "click,purchase,101,121,122,124,125,126,127,128,129,205,206,207,210,216,508,509,702,853,301,109_14,110_14,127_14,"
    "150_14,D109_14,D110_14,D127_14,D150_14,D508,D509,D702,D853"
)
CATEGORIES = ("Beauty", "Clothing_Shoes_and_Jewelry", "Health_and_Personal_Care")


def kuaisar(folder: Path, recommended: Sequence[str], searched: Sequence[str], items: Sequence[str]) -> None:
    """Rows as in the files; users 1 and 2."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "rec_inter.csv": (REC, recommended),
        "src_inter.csv": (SRC, searched),
        "user_features.csv": (USERS, ["1,3,4,0,5", "2,1,2,1,7"]),
        "item_features.csv": (ITEMS, items),
    }
    for name, (head, rows) in tables.items():
        (folder / name).write_text("\n".join([head, *rows]) + "\n")


def watched(user: int, item: int, click: int, time: str) -> str:
    return f"{user},{item},45400.0,60792.0,1.684742e+12,0,0,0,0,0,{click},{time}"


def found(user: int, item: int, clicks: int, session: int, time: str) -> str:
    return f'"[20, 34, 3]",{item},{clicks},{session},VIDEO,{user},1684763932919,USER_INPUT,{time}'


def video(item: int, first: str, second: str) -> str:
    return f'{item},"[1, 213, 24]",10,NORMAL,2023-04-22,LongImport,9,一,{first},136,二,{second},0,空,empty,0,空,empty'


def amazon(folder: Path, reviews: Sequence[Sequence[tuple[str, str, float, int]]]) -> None:
    """For each of `CATEGORIES`, (reviewer, product, rating, seconds since 1970)."""
    folder.mkdir(parents=True, exist_ok=True)
    for category, of_category in zip(CATEGORIES, reviews, strict=True):
        with gzip.open(folder / f"reviews_{category}_5.json.gz", "wt") as file:
            for number, (reviewer, product, rating, time) in enumerate(of_category):
                review = {"reviewerID": reviewer, "asin": product, "helpful": [0, number], "reviewText": "Fine."}
                if number:  # some reviewers have no name
                    review["reviewerName"] = "Ann"
                review |= {"overall": rating, "summary": "Good", "unixReviewTime": time, "reviewTime": "05 3, 2014"}
                file.write(json.dumps(review) + "\n")


def amazon_metadata(folder: Path, products: Sequence[Sequence[dict[str, object]]]) -> None:
    """For each of `CATEGORIES`, what is told of its products; written as Python literals, as published."""
    for category, of_category in zip(CATEGORIES, products, strict=True):
        with gzip.open(folder / f"meta_{category}.json.gz", "wt") as file:
            file.writelines(f"{product!r}\n" for product in of_category)


def ali_ccp(folder: Path, parts: dict[str, Sequence[str]]) -> None:
    """Part (`train`, `val`, `test`) -> rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        (folder / f"ali_ccp_{part}_sample.csv").write_text("\n".join([ALI_CCP, *rows]) + "\n")


def shown(click: int, purchase: int, user: int, item: int, scenario: int) -> str:
    return (
        f"{click},{purchase},{user},1,2,1,1,0,1,1,1,{item},{item % 3},{item + 70},4,5,1,0,0,0,{scenario},1,1,1,1,"
        "0.4734,0.562,0.0856,0.1902,0.07556,0.0,0.0,0.0"
    )
