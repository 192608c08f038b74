"""A run in the formats of other tools, and as a table. `formats` names them. Pure, except for the writing."""
