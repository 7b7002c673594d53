"""Why a classifier answers what it answers: one file a head family."""
