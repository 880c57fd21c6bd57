// `client.files`, but for the content of files.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';

import OpenAI, { toFile, toStreamingFile } from 'openai';

import {
  THIRTY_DAYS,
  assertFails,
  chatLine,
  client,
  collect,
  jsonl,
  makeCountedClient,
  otherClient,
} from './helpers.mjs';

const CONTENT = jsonl([chatLine('one'), chatLine('two')]);
const BYTES = Buffer.byteLength(CONTENT);
const PURPOSES = ['assistants', 'batch', 'fine-tune', 'vision', 'user_data', 'evals'];

const create = (more = {}) =>
  client.files.create({ file: new File([CONTENT], 'input.jsonl'), purpose: 'batch', ...more });

describe('a file is created', () => {
  let folder;
  let filePath;
  before(() => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'nightshift-'));
    filePath = path.join(folder, 'in put é.jsonl');
    fs.writeFileSync(filePath, CONTENT);
  });
  after(() => fs.rmSync(folder, { recursive: true }));

  // A stream goes out with `Transfer-Encoding: chunked` and no length.
  const sources = {
    'a read stream': [() => fs.createReadStream(filePath), 'in put é.jsonl'],
    'a read stream in small pieces': [
      () => fs.createReadStream(filePath, { highWaterMark: 7 }),
      'in put é.jsonl',
    ],
    'toFile of a stream': [() => toFile(fs.createReadStream(filePath)), 'in put é.jsonl'],
    'toFile of a buffer': [() => toFile(Buffer.from(CONTENT), 'b.jsonl'), 'b.jsonl'],
    'toStreamingFile': [
      () => toStreamingFile(fs.createReadStream(filePath), 's.jsonl', { type: 'text/plain' }),
      's.jsonl',
    ],
    'a File': [() => new File([CONTENT], '夜 𝄞.jsonl'), '夜 𝄞.jsonl'],
    'a Response': [() => new Response(CONTENT), 'unknown_file'],
  };
  for (const [name, [source, filename]] of Object.entries(sources)) {
    for (const order of ['file first', 'purpose first']) {
      test(`from ${name}, ${order}`, async () => {
        const file = await source();
        const expires_after = { anchor: 'created_at', seconds: 3600 };
        const created = await client.files.create(
          order === 'file first'
            ? { file, purpose: 'batch', expires_after }
            : { expires_after, purpose: 'batch', file },
        );
        assert.match(created.id, /^file-/);
        assert.equal(created.object, 'file');
        assert.equal(created.filename, filename);
        assert.equal(created.bytes, BYTES);
        assert.equal(created.purpose, 'batch');
        assert.equal(created.status, 'processed');
        assert.equal(created.expires_at, created.created_at + 3600);
        const content = await client.files.content(created.id);
        assert.equal(await content.text(), CONTENT);
      });
    }
  }

  for (const purpose of PURPOSES) {
    test(`for ${purpose}`, async () => {
      const file = await create({ purpose });
      assert.equal(file.purpose, purpose);
      const expected = purpose === 'batch' ? file.created_at + THIRTY_DAYS : null;
      assert.equal(file.expires_at, expected);
      await client.files.delete(file.id);
    });
  }

  test('once, with an idempotency key', async () => {
    const options = { headers: { 'Idempotency-Key': randomUUID() } };
    const upload = (content) =>
      client.files.create({ file: new File([content], 'a.jsonl'), purpose: 'batch' }, options);
    const first = await upload(CONTENT);
    assert.deepEqual(await upload(CONTENT), first);
    await assert.rejects(upload(CONTENT + CONTENT), { code: 'idempotency_key_reused' });
  });
});

test('a file is retrieved as it was created', async () => {
  const file = await create();
  const retrieved = await client.files.retrieve(file.id);
  assert.deepEqual(retrieved, file);
  assert(retrieved._request_id);
  const { data, response, request_id } = await client.files.retrieve(file.id).withResponse();
  assert.deepEqual(data, file);
  assert.equal(request_id, response.headers.get('x-request-id'));
  assert.match(response.headers.get('content-type'), /^application\/json/);
});

test('a deleted file is gone', async () => {
  const { id } = await create();
  assert.deepEqual(await client.files.delete(id), { id, object: 'file', deleted: true });
  const expected = { status: 404, param: 'id', message: `No such File object: ${id}` };
  for (const method of ['retrieve', 'delete', 'content']) {
    await assertFails(() => client.files[method](id), OpenAI.NotFoundError, expected);
  }
  const ids = (await collect(client.files.list())).map((file) => file.id);
  assert(!ids.includes(id));
});

test('waiting for processing needs one request', async () => {
  const file = await create();
  const { counted, sent } = makeCountedClient();
  assert.deepEqual(await counted.files.waitForProcessing(file.id), file);
  assert.equal(sent.length, 1);
});

test('a file of another tenant is not there', async () => {
  const { id } = await create();
  const expected = { status: 404, param: 'id', message: `No such File object: ${id}` };
  for (const method of ['retrieve', 'content', 'delete']) {
    await assertFails(() => otherClient.files[method](id), OpenAI.NotFoundError, expected);
  }
  const ids = (await collect(otherClient.files.list())).map((file) => file.id);
  assert(!ids.includes(id));
  assert.equal((await client.files.retrieve(id)).id, id);
});

describe('a list of files', () => {
  const made = [];
  before(async () => {
    for (let number = 0; number < 5; number += 1) {
      made.push((await create({ purpose: 'fine-tune' })).id);
    }
  });
  const among = (files) => files.map((file) => file.id).filter((id) => made.includes(id));

  test('begins with the newest', async () => {
    assert.deepEqual(among(await collect(client.files.list())), [...made].reverse());
    assert.deepEqual(among(await collect(client.files.list({ order: 'asc' }))), made);
  });

  test('goes on over its pages', async () => {
    const { counted, sent } = makeCountedClient();
    const query = { purpose: 'fine-tune', limit: 2, order: 'asc' };
    const files = await collect(counted.files.list(query));
    assert.deepEqual(among(files), made);
    assert.equal(sent.length, Math.ceil(files.length / 2));
    const pages = await collect((await client.files.list(query)).iterPages());
    assert.deepEqual(among(pages.flatMap((page) => page.data)), made);
  });

  test('is cut as asked', async () => {
    const query = { purpose: 'fine-tune', order: 'asc', after: made[0], limit: 2 };
    const page = await client.files.list(query);
    assert.deepEqual(page.data.map((file) => file.id), made.slice(1, 3));
    assert(page.has_more && page.hasNextPage());
    const next = await page.getNextPage();
    assert.deepEqual(next.data.map((file) => file.id), made.slice(3, 5));
    const back = await client.files.list({ purpose: 'fine-tune', after: made[2], limit: 2 });
    assert.deepEqual(back.data.map((file) => file.id), [made[1], made[0]]);
  });

  test('holds only the purpose asked for, and has all five keys', async () => {
    const page = await client.files.list({ purpose: 'fine-tune', limit: 3 });
    assert(page.data.every((file) => file.purpose === 'fine-tune'));
    const { object, first_id, last_id, has_more } = page.body;
    assert.deepEqual(
      [object, first_id, last_id, has_more],
      ['list', page.data[0].id, page.data[2].id, true],
    );
  });

  test('is empty where there is nothing', async () => {
    const page = await otherClient.files.list({ purpose: 'vision' });
    assert.deepEqual(page.body, {
      object: 'list',
      data: [],
      first_id: null,
      last_id: null,
      has_more: false,
    });
    assert(!page.hasNextPage());
  });
});
