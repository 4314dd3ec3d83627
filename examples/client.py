"""The official OpenAI client against Ollama Batch Server: only `base_url` differs.  pip install openai"""

import time

from openai import OpenAI

client = OpenAI(base_url="http://localhost:4080/v1", api_key="unused")

file = client.files.create(file=open("examples/requests.jsonl", "rb"), purpose="batch")
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
while batch.status not in ("completed", "failed", "expired", "cancelled"):
    time.sleep(2)
    batch = client.batches.retrieve(batch.id)
print(batch.status, batch.request_counts)
if batch.output_file_id:
    print(client.files.content(batch.output_file_id).text)
