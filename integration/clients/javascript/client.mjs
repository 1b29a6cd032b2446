// The JavaScript client against the cluster of $KUBECONFIG.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import net from 'node:net';
import { PassThrough, Readable } from 'node:stream';

const k8s = createRequire(`${process.env.CLIENT_MODULES}/`)('@kubernetes/client-node');
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const namespace = 'javascript';
const image = process.env.BUSYBOX;

const refused = async (code, reason, promise) => {
  const error = await promise.then(() => assert.fail(`should be refused with ${code}`), (error) => error);
  assert.equal(error.code, code, `${error}`);
  assert.equal(JSON.parse(error.body).reason, reason);
};

const text = (stream) => {
  let all = '';
  stream.on('data', (chunk) => (all += chunk));
  const waiting = (words) =>
    all.includes(words) ? all : once(stream, 'data', { signal: AbortSignal.timeout(90_000) }).then(() => waiting(words));
  return { has: waiting };
};

const chapters = {
  async crud() {
    const body = { metadata: { name: 'one' }, data: { a: '1' } };
    const created = await core.createNamespacedConfigMap({ namespace, body });
    assert.ok(created.metadata.uid && created.metadata.creationTimestamp instanceof Date);
    await refused(409, 'AlreadyExists', core.createNamespacedConfigMap({ namespace, body }));
    created.data.a = '2';
    const replaced = await core.replaceNamespacedConfigMap({ name: 'one', namespace, body: created });
    assert.equal(replaced.data.a, '2');
    await refused(409, 'Conflict', core.replaceNamespacedConfigMap({ name: 'one', namespace, body: created }));
    const listed = await core.listNamespacedConfigMap({ namespace, fieldSelector: 'metadata.name=one' });
    assert.deepEqual(listed.items.map((item) => item.data.a), ['2']);
    for (const [how, patch] of [
      [k8s.PatchStrategy.JsonPatch, [{ op: 'replace', path: '/data/a', value: 'json' }]],
      [k8s.PatchStrategy.MergePatch, { data: { a: 'merge' } }],
      [k8s.PatchStrategy.StrategicMergePatch, { data: { a: 'strategic' } }],
    ]) {
      const options = k8s.setHeaderOptions('Content-Type', how);
      const patched = await core.patchNamespacedConfigMap({ name: 'one', namespace, body: patch }, options);
      assert.ok(how.includes(patched.data.a), `${how}: ${patched.data.a}`);
    }
    const applied = await core.patchNamespacedConfigMap(
      { name: 'one', namespace, fieldManager: 'js', force: true, body: { apiVersion: 'v1', kind: 'ConfigMap', data: { a: 'applied' } } },
      k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.ServerSideApply),
    );
    assert.equal(applied.data.a, 'applied');
    await core.deleteNamespacedConfigMap({ name: 'one', namespace });
    await refused(404, 'NotFound', core.readNamespacedConfigMap({ name: 'one', namespace }));
    const objects = k8s.KubernetesObjectApi.makeApiClient(config);
    const deployment = {
      apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'generic', namespace },
      spec: { replicas: 0, selector: { matchLabels: { a: 'b' } }, template: { metadata: { labels: { a: 'b' } }, spec: { containers: [{ name: 'c', image }] } } },
    };
    await objects.create(deployment);
    assert.equal((await apps.readNamespacedDeployment({ name: 'generic', namespace })).spec.strategy.type, 'RollingUpdate');
    await objects.delete(deployment);
  },

  async informer() {
    const path = `/api/v1/namespaces/${namespace}/configmaps`;
    const informer = k8s.makeInformer(config, path, () => core.listNamespacedConfigMap({ namespace, labelSelector: 'js=yes' }), 'js=yes');
    const seen = [];
    const events = new PassThrough({ objectMode: true });
    for (const kind of ['add', 'update', 'delete']) {
      informer.on(kind, (object) => events.write(`${kind} ${object.metadata.name}`));
    }
    informer.on('error', (error) => error.type === 'aborted' || events.destroy(error));
    const next = async () => (await once(events, 'data', { signal: AbortSignal.timeout(90_000) }))[0];
    await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'before', labels: { js: 'yes' } } } });
    let waiting = next();
    await informer.start();
    seen.push(await waiting);
    waiting = next();
    await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'after', labels: { js: 'yes' } } } });
    seen.push(await waiting);
    waiting = next();
    await core.patchNamespacedConfigMap({ name: 'after', namespace, body: { data: { a: 'b' } } }, k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch));
    seen.push(await waiting);
    waiting = next();
    await core.deleteNamespacedConfigMap({ name: 'before', namespace });
    seen.push(await waiting);
    assert.deepEqual(seen, ['add before', 'add after', 'update after', 'delete before']);
    assert.equal(informer.get('after', namespace).data.a, 'b');
    await informer.stop();
  },

  async watch() {
    const watch = new k8s.Watch(config);
    const types = [];
    await new Promise((resolve, reject) => {
      let request;
      const done = (error) => (error && error.name !== 'AbortError' ? reject(error) : resolve());
      watch
        .watch(`/api/v1/namespaces/${namespace}/pods`, { timeoutSeconds: 90 }, (type) => { types.push(type); if (type === 'ADDED') request?.abort(); }, done)
        .then((controller) => {
          request = controller;
          return core.createNamespacedPod({ namespace, body: pod });
        })
        .catch(reject);
    });
    assert.equal(types[0], 'ADDED');
  },

  async streams() {
    const ready = (object) => object.status?.conditions?.some((condition) => condition.type === 'Ready' && condition.status === 'True');
    const deadline = Date.now() + 120_000;
    while (!ready(await core.readNamespacedPod({ name: 'streams', namespace }))) assert.ok(Date.now() < deadline, 'the pod is not ready');
    const logs = new PassThrough();
    const followed = text(logs);
    const following = await new k8s.Log(config).log(namespace, 'streams', 'main', logs, { follow: true });
    await followed.has('hello from the log');

    const [out, err] = [new PassThrough(), new PassThrough()];
    const [outText, errText] = [text(out), text(err)];
    const exec = new k8s.Exec(config);
    const status = await new Promise((resolve, reject) =>
      exec.exec(namespace, 'streams', 'main', ['sh', '-c', 'echo to-out; echo to-err >&2; exit 7'], out, err, null, false, resolve).catch(reject));
    assert.deepEqual([status.status, status.reason, status.details.causes[0].message], ['Failure', 'NonZeroExitCode', '7']);
    await outText.has('to-out');
    await errText.has('to-err');

    const back = new PassThrough();
    const backText = text(back);
    const input = new PassThrough();
    const shell = await exec.exec(namespace, 'streams', 'main', ['sh'], back, err, input, false);
    input.write('echo through $((40 + 2))\n');
    await backText.has('through 42');
    shell.close();

    const attached = await new k8s.Attach(config).attach(namespace, 'streams', 'main', new PassThrough(), new PassThrough(), Readable.from(['by attach\n']), false);
    await followed.has('heard by attach');
    attached.close();
    following.abort();

    const forward = new k8s.PortForward(config);
    const server = net.createServer((socket) => forward.portForward(namespace, 'streams', [8080], socket, null, socket));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const socket = net.connect(server.address().port, '127.0.0.1');
    const answer = text(socket);
    socket.write('there and back');
    await answer.has('there and back');
    socket.destroy();
    server.close();
    await core.deleteNamespacedPod({ name: 'streams', namespace });
  },
};

const container = (name, script, more = {}) => ({ name, image, imagePullPolicy: 'IfNotPresent', command: ['sh', '-c', script], ...more });
const pod = {
  metadata: { name: 'streams' },
  spec: {
    terminationGracePeriodSeconds: 0,
    containers: [
      container('main', 'echo hello from the log; while read -r line; do echo heard $line; done; sleep 3600', { stdin: true }),
      container('echo', 'while true; do nc -l -p 8080 -e cat; done'),
    ],
  },
};

await core.createNamespace({ body: { metadata: { name: namespace } } });
for (const [name, chapter] of Object.entries(chapters)) {
  await chapter();
  console.log(`javascript: ${name}: ok`);
}
await core.deleteNamespace({ name: namespace });
process.exit(0);
