// The official Node client against the live server whose /v1 is the first argument: node client.mjs http://…/v1
// Prints what it checked as one line of JSON; a failed assertion ends it.
//
// What the server has: the models gemma3:12b and hf.co/user/repo:Q4; the line "refused" is refused by the model server,
// and "hangs" is never answered.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import diagnostics from 'node:diagnostics_channel';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI, { toFile } from 'openai';

const client = new OpenAI({ baseURL: process.argv[2], apiKey: 'any', timeout: 30_000 });
const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'node-client-'));

// Every request that left, the client's own retries too. Where its length is null it goes in chunks.
const sent = [];
diagnostics.subscribe('undici:client:sendHeaders', ({ request }) => {
  sent.push({ what: `${request.method} ${request.path}`, length: request.contentLength });
});

const requestLine = (customId) =>
  JSON.stringify({
    custom_id: customId,
    method: 'POST',
    url: '/v1/chat/completions',
    body: { model: 'gemma3:12b', messages: [{ role: 'user', content: customId }] },
  }) + '\n';

function write(name, customIds) {
  const file = path.join(directory, name);
  fs.writeFileSync(file, customIds.map(requestLine).join(''));
  return file;
}

async function all(pages) {
  const found = [];
  for await (const each of pages) found.push(each);
  return found;
}

const ids = (objects) => objects.map((each) => each.id);

const createBatch = (fileId, more = {}) =>
  client.batches.create({
    input_file_id: fileId,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
    ...more,
  });

async function wait(batchId, ...statuses) {
  for (const until = Date.now() + 60_000; ; await sleep(50)) {
    const batch = await client.batches.retrieve(batchId);
    if (statuses.includes(batch.status)) return batch;
    assert.ok(Date.now() < until, `${batchId} is still ${batch.status}`);
  }
}

/** The error of a call that has to fail in one request, with these properties. */
async function refusal(kind, properties, call) {
  const before = sent.length;
  const error = await call().then(
    () => assert.fail(`expected ${kind.name}`),
    (error) => error,
  );
  assert.ok(error instanceof kind, `expected ${kind.name}, got ${error}`);
  const { message, ...others } = properties;
  const { status, type, param, code } = error;
  assert.deepEqual({ status, type, param, code }, { type: 'invalid_request_error', ...others });
  if (message instanceof RegExp) assert.match(error.message, message);
  else assert.equal(error.message, message);
  assert.match(error.requestID, /^req_[0-9a-f]{32}$/);
  assert.equal(sent.length - before, 1, `${kind.name} after ${sent.length - before} requests`);
  return error;
}

const checks = {
  async 'a stream uploads in chunks, and comes back as it was'() {
    const stored = write('large.jsonl', Array.from({ length: 5000 }, (_, number) => `line ${number}`));
    const file = await client.files.create({ file: fs.createReadStream(stored), purpose: 'batch' });
    assert.deepEqual(sent, [{ what: 'POST /v1/files', length: null }]);
    assert.equal(file.bytes, fs.statSync(stored).size);
    assert.equal(file.filename, 'large.jsonl');
    assert.equal(file.expires_at, file.created_at + 30 * 86_400);
    assert.deepEqual(await client.files.retrieve(file.id), file);
    assert.equal((await client.files.waitForProcessing(file.id)).status, 'processed');
    const answer = await client.files.content(file.id);
    assert.ok(Buffer.from(await answer.arrayBuffer()).equals(fs.readFileSync(stored)));
    assert.deepEqual(await client.files.delete(file.id), { id: file.id, object: 'file', deleted: true });
  },

  async 'buffers, names and expires_after upload too'() {
    const file = await client.files.create({
      file: await toFile(Buffer.from(requestLine('a')), 'Grüße.jsonl'),
      purpose: 'batch',
      expires_after: { anchor: 'created_at', seconds: 3600 },
    });
    assert.ok(sent.at(-1).length > file.bytes);
    assert.deepEqual([file.filename, file.expires_at - file.created_at], ['Grüße.jsonl', 3600]);
    const nameless = await client.files.create({ file: await toFile(Buffer.from('words')), purpose: 'user_data' });
    assert.equal(nameless.expires_at, null);
    await client.files.delete(file.id);
    await client.files.delete(nameless.id);
  },

  async 'a batch runs from upload to both downloads'() {
    const file = await client.files.create({
      file: fs.createReadStream(write('in.jsonl', ['a', 'refused', 'b'])),
      purpose: 'batch',
    });
    const created = await createBatch(file.id, {
      metadata: { job: 'night' },
      output_expires_after: { anchor: 'created_at', seconds: 7200 },
    });
    assert.equal(created.status, 'validating');
    assert.deepEqual(created.metadata, { job: 'night' });

    const batch = await wait(created.id, 'completed', 'failed');
    assert.equal(batch.status, 'completed', JSON.stringify(batch.errors));
    assert.deepEqual(batch.request_counts, { total: 3, completed: 2, failed: 1 });
    assert.equal(batch.usage.total_tokens, 20);
    const lines = async (fileId) =>
      (await (await client.files.content(fileId)).text()).trimEnd().split('\n').map((line) => JSON.parse(line));
    const [output, errors] = [await lines(batch.output_file_id), await lines(batch.error_file_id)];
    assert.deepEqual(output.map((line) => line.custom_id), ['a', 'b']);
    assert.equal(output[0].response.body.choices[0].message.content, 'answer to a');
    assert.deepEqual(errors.map((line) => [line.custom_id, line.response.status_code]), [['refused', 400]]);
    const result = await client.files.retrieve(batch.output_file_id);
    assert.deepEqual([result.purpose, result.expires_at - result.created_at], ['batch_output', 7200]);

    // The client would retry a 409 unless it is told that it is for good.
    const words = "Cannot cancel a batch with status 'completed'.";
    const conflict = { status: 409, param: null, code: null, message: `409 ${words}` };
    const error = await refusal(OpenAI.ConflictError, conflict, () => client.batches.cancel(batch.id));
    assert.equal(error.error.message, words);
  },

  async 'a batch is cancelled while it runs'() {
    const stream = fs.createReadStream(write('c.jsonl', ['c', 'hangs', 'd']));
    const file = await client.files.create({ file: stream, purpose: 'batch' });
    const { id } = await createBatch(file.id);
    await wait(id, 'in_progress');
    assert.equal((await client.batches.cancel(id)).status, 'cancelling');
    const batch = await wait(id, 'cancelled');
    assert.ok(batch.error_file_id);
    assert.equal((await client.batches.cancel(id)).status, 'cancelled');
  },

  async 'an upload in parts becomes a file that a batch runs'() {
    const content = Buffer.from(['p', 'q', 'r'].map(requestLine).join(''));
    const pieces = [content.subarray(0, 100), content.subarray(100, 101), content.subarray(101)];
    const upload = await client.uploads.create({
      filename: 'parts.jsonl',
      purpose: 'batch',
      bytes: content.length,
      mime_type: 'application/jsonl',
    });
    assert.equal(upload.status, 'pending');
    const parts = await Promise.all(
      pieces.map(async (piece) => client.uploads.parts.create(upload.id, { data: await toFile(piece) })),
    );
    assert.ok(parts.every((part) => part.object === 'upload.part' && part.upload_id === upload.id));

    const md5 = createHash('md5').update(content).digest('hex');
    const wrong = { part_ids: ids(parts).toReversed(), md5 };
    await refusal(
      OpenAI.BadRequestError,
      { status: 400, param: 'md5', code: 'invalid_value', message: /^400 Invalid 'md5': / },
      () => client.uploads.complete(upload.id, wrong),
    );
    const { status, file } = await client.uploads.complete(upload.id, { part_ids: ids(parts), md5 });
    assert.equal(status, 'completed');
    assert.deepEqual(file, await client.files.retrieve(file.id));
    assert.ok(Buffer.from(await (await client.files.content(file.id)).arrayBuffer()).equals(content));
    const batch = await wait((await createBatch(file.id)).id, 'completed', 'failed');
    assert.deepEqual(batch.request_counts, { total: 3, completed: 3, failed: 0 });

    // A part from a stream, of unknown length; and an upload that comes to nothing.
    const more = { filename: 'a.txt', purpose: 'user_data', bytes: 1, mime_type: 'text/plain' };
    const other = await client.uploads.create(more);
    await client.uploads.parts.create(other.id, { data: fs.createReadStream(write('part', ['s'])) });
    assert.equal(sent.at(-1).length, null);
    assert.equal((await client.uploads.cancel(other.id)).status, 'cancelled');
  },

  async 'lists page to their end'() {
    const made = [];
    for (const name of ['1', '2', '3', '4', '5']) {
      const file = await toFile(Buffer.from(requestLine(name)), `${name}.jsonl`);
      made.push((await client.files.create({ file, purpose: 'batch' })).id);
    }
    const everything = ids((await client.files.list()).data);
    for (const limit of [1, 2, 3]) {
      assert.deepEqual(ids(await all(client.files.list({ limit }))), everything);
      assert.deepEqual(ids(await all(client.files.list({ limit, order: 'asc' }))), everything.toReversed());
    }
    assert.deepEqual(everything.slice(0, 5), made.toReversed());
    const results = await all(client.files.list({ limit: 1, purpose: 'batch_output' }));
    assert.ok(results.length >= 2 && results.every((file) => file.purpose === 'batch_output'));

    const before = sent.length;
    const batches = ids(await all(client.batches.list({ limit: 1 })));
    assert.equal(sent.length - before, batches.length);
    assert.deepEqual(batches, ids((await client.batches.list()).data));
    assert.ok(batches.length >= 2);
  },

  async 'models are found whatever their ids hold'() {
    const models = await all(client.models.list());
    assert.deepEqual(ids(models), ['gemma3:12b', 'hf.co/user/repo:Q4']);
    for (const model of models) assert.deepEqual(await client.models.retrieve(model.id), model);
  },

  async 'refusals are the errors that programs catch'() {
    await refusal(
      OpenAI.NotFoundError,
      { status: 404, param: 'id', code: null, message: '404 No such File object: file-none' },
      () => client.files.retrieve('file-none'),
    );
    await refusal(
      OpenAI.NotFoundError,
      { status: 404, param: 'model', code: 'model_not_found', message: "404 The model 'nope:1b' does not exist" },
      () => client.models.retrieve('nope:1b'),
    );
    await refusal(
      OpenAI.BadRequestError,
      {
        status: 400,
        param: 'batch_id',
        code: 'invalid_value',
        message: "400 Invalid 'batch_id': 'nope'. Expected an ID that begins with 'batch'.",
      },
      () => client.batches.retrieve('nope'),
    );
    await refusal(
      OpenAI.BadRequestError,
      {
        status: 400,
        param: 'input_file_id',
        code: 'missing_required_parameter',
        message: "400 Missing required parameter: 'input_file_id'.",
      },
      () => createBatch(undefined),
    );
    await refusal(
      OpenAI.BadRequestError,
      { status: 400, param: null, code: null, message: NOT_JSONL },
      async () => client.files.create({ file: await toFile(Buffer.from('notes'), 'notes.jsonl'), purpose: 'batch' }),
    );
  },
};

const NOT_JSONL =
  '400 Invalid file format for Batch API. Line 1 is not valid JSON; the file must be .jsonl, one JSON object on each line.';

let name;
try {
  for (name in checks) await checks[name]();
  console.log(JSON.stringify({ node: process.version, requests: sent.length, checked: Object.keys(checks) }));
} catch (error) {
  console.error(`It failed that ${name}:`, error.stack);
  process.exitCode = 1;
} finally {
  fs.rmSync(directory, { recursive: true });
}
