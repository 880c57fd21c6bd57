// The content of a file, by every accessor of the response that the SDK gives.
import assert from 'node:assert/strict';
import { before, test } from 'node:test';

import OpenAI from 'openai';

import { assertFails, chatLine, client, jsonl } from './helpers.mjs';

// Characters of two to four bytes, and no final line end.
const TEXT = ['a', 'é', '夜', '𝄞'].map((id) => JSON.stringify(chatLine(id))).join('\n');
const BYTES = Buffer.from(TEXT);

let id;
before(async () => {
  ({ id } = await client.files.create({ file: new File([TEXT], 'a.jsonl'), purpose: 'batch' }));
});

test('content is read as text', async () => {
  const response = await client.files.content(id);
  assert(response instanceof Response);
  assert.equal(response.status, 200);
  assert.equal(response.headers.get('content-length'), String(BYTES.length));
  assert.equal(response.headers.get('content-type'), 'application/octet-stream');
  assert(response.headers.get('x-request-id'));
  const text = await response.text();
  assert.equal(text, TEXT);
  assert.deepEqual(
    text.split('\n').map((line) => JSON.parse(line).custom_id),
    ['a', 'é', '夜', '𝄞'],
  );
});

test('content of one JSON value is parsed', async () => {
  const line = chatLine('only');
  const file = new File([jsonl([line])], 'one.jsonl');
  const { id: only } = await client.files.create({ file, purpose: 'batch' });
  assert.deepEqual(await (await client.files.content(only)).json(), line);
});

test('content is read as bytes', async () => {
  assert.deepEqual(Buffer.from(await (await client.files.content(id)).arrayBuffer()), BYTES);
  const blob = await (await client.files.content(id)).blob();
  assert.deepEqual(Buffer.from(await blob.arrayBuffer()), BYTES);
});

test('content is streamed', async () => {
  const pieces = [];
  for await (const piece of (await client.files.content(id)).body) pieces.push(piece);
  assert.deepEqual(Buffer.concat(pieces), BYTES);
});

test('content can be left half read', async () => {
  const reader = (await client.files.content(id)).body.getReader();
  await reader.read();
  await reader.cancel();
  assert.equal(await (await client.files.content(id)).text(), TEXT);
});

test('a part of the content is asked for', async () => {
  const response = await client.files.content(id, { headers: { Range: 'bytes=-5' } });
  assert.equal(response.status, 206);
  const [first, last] = [BYTES.length - 5, BYTES.length - 1];
  assert.equal(response.headers.get('content-range'), `bytes ${first}-${last}/${BYTES.length}`);
  assert.deepEqual(Buffer.from(await response.arrayBuffer()), BYTES.subarray(-5));
});

for (const purpose of ['assistants', 'user_data', 'vision']) {
  test(`files for ${purpose} are not given back`, async () => {
    const file = await client.files.create({ file: new File(['text'], 'a.txt'), purpose });
    await assertFails(() => client.files.content(file.id), OpenAI.BadRequestError, {
      status: 400,
      message: `Not allowed to download files of purpose: ${purpose}`,
    });
  });
}
