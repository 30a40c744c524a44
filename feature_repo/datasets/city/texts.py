"""Plain English about users and places: what a language model gets to read."""

from __future__ import annotations

from collections.abc import Sequence

PRICES = ("cheap", "fairly priced", "rather expensive", "expensive")
DIETS = {
    "eats everything": "eats a bit of everything",
    "vegetarian": "eats vegetarian food",
    "pescatarian": "eats fish but no meat",
    "healthy eater": "likes light and healthy food",
    "sweet tooth": "has a sweet tooth",
    "spice lover": "loves spicy food",
}
ROLES = {
    "resident": "lives in {district}",
    "office worker": "works in an office and lives in {district}",
    "student": "studies at the university and lives in {district}",
    "visitor": "visits Helsinki and stays in a hotel",
}
HOUSEHOLDS = {
    "single": "alone",
    "couple": "as a couple",
    "family with children": "in a family with children",
    "shared flat": "in a shared flat",
}


def of_place(name: str, category: str, specialty: str, menu: Sequence[str], price: float, street: str) -> str:
    """
    >>> of_place("Soppa", "soup kitchen", "pea soup", ("goulash soup", "gazpacho"), 1.4, "Kluuvikatu")
    'Soppa is a cheap soup kitchen on Kluuvikatu. It is known for pea soup and also serves goulash soup and gazpacho.'
    """
    served = " and ".join((", ".join(menu[:-1]), menu[-1])) if len(menu) > 1 else "".join(menu)
    word = PRICES[min(max(round(price) - 1, 0), 3)]
    article = "an" if word[0] in "aeiou" else "a"
    return f"{name} is {article} {word} {category} on {street}. It is known for {specialty} and also serves {served}."


def of_user(age_band: str, household: str, role: str, district: str, diet: str, price_taste: str) -> str:
    """
    >>> of_user("25-34", "couple", "resident", "Kluuvi", "vegetarian", "low prices")
    'A person aged 25 to 34 who lives in Kluuvi, as a couple. This person eats vegetarian food and prefers low prices.'
    """
    age = "over 65" if age_band == "65+" else "aged " + age_band.replace("-", " to ")
    where = ROLES[role].format(district=district)
    how = "" if role == "visitor" else f", {HOUSEHOLDS[household]}"
    return f"A person {age} who {where}{how}. This person {DIETS[diet]} and prefers {price_taste}."
