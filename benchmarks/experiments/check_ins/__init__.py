"""Where does somebody check in next: the log as a ranking task, rules that need no learning, pairs, cells, findings."""
