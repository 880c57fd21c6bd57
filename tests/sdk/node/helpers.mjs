// What the tests share: clients, lines to send, and ways to wait for a batch and read its files.
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';

import OpenAI from 'openai';

const { NIGHTSHIFT_TEST_URL, NIGHTSHIFT_TEST_KEY, NIGHTSHIFT_TEST_OTHER_KEY } = process.env;

export const CHAT = '/v1/chat/completions';
export const THIRTY_DAYS = 30 * 24 * 3600;
const TERMINAL = ['completed', 'failed', 'expired', 'cancelled'];

export function makeClient(options = {}) {
  return new OpenAI({ baseURL: NIGHTSHIFT_TEST_URL, apiKey: NIGHTSHIFT_TEST_KEY, ...options });
}

export const client = makeClient();
/** A client of another tenant. */
export const otherClient = makeClient({ apiKey: NIGHTSHIFT_TEST_OTHER_KEY });

/** A client, and the list of all requests that it sends, retries included. */
export function makeCountedClient() {
  const sent = [];
  const counted = makeClient({
    fetch: (url, init) => {
      sent.push(`${init.method} ${url}`);
      return fetch(url, init);
    },
  });
  return { counted, sent };
}

/** One request; `simulate` steers the simulated upstream: `{ status, latency_ms }`. */
export function chatLine(customId, { model = 'sim-small', ...simulate } = {}) {
  const body = { model, messages: [{ role: 'user', content: `Say ${customId}` }] };
  if (Object.keys(simulate).length > 0) body.simulate = simulate;
  return { custom_id: customId, method: 'POST', url: CHAT, body };
}

export const jsonl = (lines) => lines.map((line) => `${JSON.stringify(line)}\n`).join('');

export function upload(lines) {
  return client.files.create({ file: new File([jsonl(lines)], 'input.jsonl'), purpose: 'batch' });
}

/** Uploads the lines and creates a batch of them. */
export async function start(lines, more = {}) {
  const { id } = await upload(lines);
  return client.batches.create({
    input_file_id: id,
    endpoint: CHAT,
    completion_window: '24h',
    ...more,
  });
}

/** Polls the batch until its status is one of `until`. */
export async function wait(id, { by = client, until = TERMINAL, seconds = 60 } = {}) {
  const deadline = performance.now() + seconds * 1000;
  for (;;) {
    const batch = await by.batches.retrieve(id);
    if (until.includes(batch.status)) return batch;
    assert(!TERMINAL.includes(batch.status), `not ${until}: ${JSON.stringify(batch)}`);
    assert(performance.now() < deadline, `still, after ${seconds} s: ${JSON.stringify(batch)}`);
    await sleep(50);
  }
}

/** A batch of the lines, ended. */
export async function run(lines, more) {
  return wait((await start(lines, more)).id);
}

/** The lines of an output or error file; none where there is no file. */
export async function records(fileId) {
  if (fileId === null) return [];
  const text = await (await client.files.content(fileId)).text();
  assert(text.endsWith('\n'));
  return text.slice(0, -1).split('\n').map((line) => JSON.parse(line));
}

/** All that an async iterable gives. */
export async function collect(items) {
  const all = [];
  for await (const item of items) all.push(item);
  return all;
}

/** Asserts that a call fails with the class, and with all that an error answer says. */
export async function assertFails(call, Class, expected) {
  const { status, type = 'invalid_request_error', code = null, param = null, message } = expected;
  let error;
  await assert.rejects(call, (caught) => {
    error = caught;
    return true;
  });
  assert(error instanceof Class && error instanceof OpenAI.APIError, `${error?.stack}`);
  assert.deepEqual([error.status, error.type, error.code, error.param], [status, type, code, param]);
  assert.deepEqual(Object.keys(error.error).sort(), ['code', 'message', 'param', 'type']);
  assert(error.requestID);
  if (message !== undefined) assert.equal(error.message, `${status} ${message}`);
  return error;
}
