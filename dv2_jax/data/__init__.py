"""Images, tokenization, dataset rows and packing. Nothing here imports the agent loop; `agent` imports `data`."""
