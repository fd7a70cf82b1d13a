"""The capacity report: which set-up to rent or to buy for a job, what it costs, and what that rests on."""
