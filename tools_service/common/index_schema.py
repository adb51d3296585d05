"""Version of the layout of text indexes; light, since the trainer reads it to name the index that it builds."""

# Increase it whenever an index built by an earlier version would answer differently or not at all.
# 1: words as written, lower case and stemmed. 2: folded letters; scripts without spaces by character.
TEXT_INDEX_SCHEMA = 2
