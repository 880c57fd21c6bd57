// `client.batches`, and a batch's whole way.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { describe, test } from 'node:test';

import OpenAI from 'openai';

import {
  CHAT,
  assertFails,
  chatLine,
  client,
  collect,
  makeCountedClient,
  otherClient,
  records,
  run,
  start,
  upload,
  wait,
} from './helpers.mjs';

const ALL_KEYS = [
  'id', 'object', 'endpoint', 'model', 'errors', 'input_file_id', 'completion_window', 'status',
  'output_file_id', 'error_file_id', 'created_at', 'in_progress_at', 'expires_at',
  'finalizing_at', 'completed_at', 'failed_at', 'expired_at', 'cancelling_at', 'cancelled_at',
  'request_counts', 'usage', 'metadata',
].sort();

const createUnknown = (by = client) =>
  by.batches.create({ input_file_id: 'file-unknown', endpoint: CHAT, completion_window: '24h' });

describe('a batch', () => {
  test('answers every line in input order', async () => {
    const ids = ['first', 'é夜𝄞', 'a\u2028b', 'a\u2029b', 'a\u0085b', '007', 'last'];
    const created = await start(ids.map((id) => chatLine(id)), { metadata: { night: '1' } });
    assert.deepEqual(Object.keys(created).sort(), ALL_KEYS);
    assert.equal(created.status, 'validating');
    assert.equal(created.expires_at, created.created_at + 86400);
    assert.deepEqual(created.request_counts, { total: 0, completed: 0, failed: 0 });

    const batch = await wait(created.id);
    assert.deepEqual(Object.keys(batch).sort(), ALL_KEYS);
    assert.equal(batch.status, 'completed');
    assert.deepEqual(batch.metadata, { night: '1' });
    assert.deepEqual([batch.model, batch.errors, batch.error_file_id], ['sim-small', null, null]);
    const counts = { total: ids.length, completed: ids.length, failed: 0 };
    assert.deepEqual(batch.request_counts, counts);

    const output = await records(batch.output_file_id);
    assert.deepEqual(output.map((record) => record.custom_id), ids);
    for (const record of output) {
      assert.deepEqual(Object.keys(record), ['id', 'custom_id', 'response', 'error']);
      assert.match(record.id, /^batch_req_/);
      assert.equal(record.error, null);
      assert.equal(record.response.status_code, 200);
      assert.equal(typeof record.response.request_id, 'string');
      assert.equal(typeof record.response.body.choices[0].message.content, 'string');
    }
    const { usage } = batch;
    assert(usage.input_tokens > 0 && usage.output_tokens > 0);
    assert.equal(usage.total_tokens, usage.input_tokens + usage.output_tokens);
    assert.equal(typeof usage.input_tokens_details.cached_tokens, 'number');
    assert.equal(typeof usage.output_tokens_details.reasoning_tokens, 'number');
    const raw = await (await client.files.content(batch.output_file_id)).text();
    assert(!/[\u2028\u2029\u0085]/.test(raw), 'separators are escaped');
  });

  test('puts refused lines into the error file', async () => {
    const batch = await run([
      chatLine('good-1', { latency_ms: 300 }),
      chatLine('bad-1', { status: 400 }),
      chatLine('good-2'),
      chatLine('bad-2', { status: 404, latency_ms: 200 }),
    ]);
    assert.equal(batch.status, 'completed');
    assert.deepEqual(batch.request_counts, { total: 4, completed: 2, failed: 2 });
    const output = await records(batch.output_file_id);
    assert.deepEqual(output.map((record) => record.custom_id), ['good-1', 'good-2']);
    const errors = await records(batch.error_file_id);
    assert.deepEqual(
      errors.map(({ custom_id, error, response }) => [custom_id, error, response.status_code]),
      [['bad-1', null, 400], ['bad-2', null, 404]],
    );
    const file = await client.files.retrieve(batch.error_file_id);
    assert.equal(file.purpose, 'batch_output');
    assert.equal(file.filename, `${batch.id}_error.jsonl`);
  });

  for (const metadata of [undefined, null, {}, { a: 'b' }]) {
    test(`takes ${JSON.stringify(metadata)} as metadata`, async () => {
      const batch = await start([chatLine('one')], { metadata });
      assert.deepEqual(batch.metadata ?? {}, metadata ?? {});
    });
  }

  test('has output files that expire when asked to', async () => {
    const output_expires_after = { anchor: 'created_at', seconds: 3600 };
    const batch = await run([chatLine('one')], { output_expires_after });
    const file = await client.files.retrieve(batch.output_file_id);
    assert.equal(file.expires_at, file.created_at + 3600);
  });

  test('is created once with an idempotency key', async () => {
    const { id } = await upload([chatLine('one')]);
    const options = { headers: { 'Idempotency-Key': randomUUID() } };
    const create = (more) =>
      client.batches.create(
        { input_file_id: id, endpoint: CHAT, completion_window: '24h', ...more },
        options,
      );
    const first = await create();
    assert.deepEqual(await create(), first);
    await assert.rejects(create({ metadata: { a: 'b' } }), { code: 'idempotency_key_reused' });
  });

  test('of an unknown file fails', async () => {
    const created = await createUnknown();
    assert.equal(created.status, 'validating');
    const batch = await wait(created.id);
    assert.equal(batch.status, 'failed');
    assert.equal(batch.errors.object, 'list');
    const [{ code, param, line }] = batch.errors.data;
    assert.deepEqual([code, param, line], ['invalid_request', 'file_id', null]);
  });

  test('of another tenant is not there', async () => {
    const { id, input_file_id } = await start([chatLine('one')]);
    for (const method of ['retrieve', 'cancel']) {
      await assertFails(() => otherClient.batches[method](id), OpenAI.NotFoundError, {
        status: 404,
        message: `No batch found with id '${id}'.`,
      });
    }
    const ids = (await collect(otherClient.batches.list())).map((batch) => batch.id);
    assert(!ids.includes(id));
    const stolen = await otherClient.batches.create({
      input_file_id,
      endpoint: CHAT,
      completion_window: '24h',
    });
    assert.equal((await wait(stolen.id, { by: otherClient })).status, 'failed');
  });
});

describe('cancelling', () => {
  test('keeps what has run, and may be asked for twice', async () => {
    // More lines than the upstream takes at once, and slower than this test cancels.
    const ids = Array.from({ length: 40 }, (_, n) => `slow-${String(n).padStart(2, '0')}`);
    const { id } = await start(ids.map((line) => chatLine(line, { latency_ms: 3000 })));
    await wait(id, { until: ['in_progress'] });
    const first = await client.batches.cancel(id);
    assert.equal(first.status, 'cancelling');
    const again = await client.batches.cancel(id);
    assert(['cancelling', 'cancelled'].includes(again.status));
    assert.equal(again.cancelling_at, first.cancelling_at);

    const ended = await wait(id);
    assert.equal(ended.status, 'cancelled');
    const output = await records(ended.output_file_id);
    const errors = await records(ended.error_file_id);
    const found = [...output, ...errors].map((record) => record.custom_id).sort();
    assert.deepEqual(found, ids);
    assert(errors.length > 0, 'some lines never ran');
    assert(errors.every(({ error }) => error.code === 'batch_cancelled'));
    assert.deepEqual(ended.request_counts, { total: 40, completed: output.length, failed: 0 });
    assert.deepEqual(await client.batches.cancel(id), ended);
  });

  test('is refused once a batch is completed, with one request', async () => {
    const { id } = await run([chatLine('one')]);
    const { counted, sent } = makeCountedClient();
    const error = await assertFails(() => counted.batches.cancel(id), OpenAI.ConflictError, {
      status: 409,
      message: "Cannot cancel a batch with status 'completed'.",
    });
    assert.equal(error.headers.get('x-should-retry'), 'false');
    assert.equal(sent.length, 1);
  });
});

describe('a list of batches', () => {
  test('goes on over its pages, the newest first', async () => {
    const made = [];
    for (let number = 0; number < 5; number += 1) made.unshift((await createUnknown()).id);
    const { counted, sent } = makeCountedClient();
    const ids = (await collect(counted.batches.list({ limit: 2 }))).map((batch) => batch.id);
    assert.deepEqual(ids.slice(0, 5), made);
    assert.equal(new Set(ids).size, ids.length);
    assert.equal(sent.length, Math.ceil(ids.length / 2));

    const page = await client.batches.list({ after: made[0], limit: 3 });
    assert.deepEqual(page.data.map((batch) => batch.id), made.slice(1, 4));
    assert.deepEqual(
      [page.body.object, page.body.first_id, page.body.last_id, page.has_more],
      ['list', made[1], made[3], true],
    );
    assert.equal((await page.getNextPage()).data[0].id, made[4]);
  });
});
