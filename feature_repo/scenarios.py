"""Views of scenarios: how people behave on each business surface."""

from feature_repo import entities
from feature_repo.behaviour import statistics_view

scenario_stats = statistics_view("scenario", [entities.scenario], "How much is shown, clicked and ordered there.")
