#!/usr/bin/env bash
# One kubectl, used as people use it, against the cluster of $KUBECONFIG.
#
#   KUBECTL=/path/to/kubectl NGINX=image BUSYBOX=image NAMESPACE=name story.sh [chapter...]
#
# A chapter is a function; without arguments all are told, in order. The first step that fails, or
# whose output lacks the words it should have, ends the story with what was expected and printed.
set -euo pipefail

: "${KUBECTL:?}" "${KUBECONFIG:?}" "${NGINX:?}" "${BUSYBOX:?}" "${NAMESPACE:?}"
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
chapter=beginning
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$work"' EXIT
minor=$("$KUBECTL" version --client -o json | sed -n 's/.*"minor": "\([0-9]*\).*/\1/p' | head -1)

k() { "$KUBECTL" --namespace "$NAMESPACE" "$@"; }

fail() {
    printf 'chapter %s, line %s: %s\n' "$chapter" "${BASH_LINENO[1]}" "$*" >&2
    exit 1
}

# The command succeeds; its output (both streams) is in $out.
ok() {
    out=$("$@" 2>&1) || fail "failed: $*"$'\n'"$out"
}

# The command fails and says the words.
refused() {
    local words=$1
    shift
    if out=$("$@" 2>&1); then fail "succeeded, but should not have: $*"$'\n'"$out"; fi
    [[ $out == *"$words"* ]] || fail "$* should say '$words', but said:"$'\n'"$out"
}

# The last output has all these words.
says() {
    local words
    for words in "$@"; do
        [[ $out == *"$words"* ]] || fail "no '$words' in:"$'\n'"$out"
    done
}

lacks() {
    [[ $out != *"$1"* ]] || fail "'$1' should not be in:"$'\n'"$out"
}

is() {
    [[ $out == "$1" ]] || fail "expected '$1', got '$out'"
}

# Asks until the command's output has the words, for at most three minutes.
until_says() {
    local words=$1 deadline=$((SECONDS + 180))
    shift
    while out=$("$@" 2>&1) || true; [[ $out != *"$words"* ]]; do
        ((SECONDS < deadline)) || fail "$* did not come to say '$words', but:"$'\n'"$out"
    done
}

# Pods of replaced versions are listed until their processes have ended: waits for just so many.
pods_left() {
    local deadline=$((SECONDS + 180))
    while out=$(k get pods -l app=web -o name) || true; (($(grep -c . <<<"$out") != $1)); do
        ((SECONDS < deadline)) || fail "waited for $1 pods, but there are:"$'\n'"$out"
    done
}

cat >"$work/web.yaml" <<YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: nginx
        image: $NGINX
        imagePullPolicy: IfNotPresent
        ports: [{name: http, containerPort: 80}]
        env: [{name: FIRST, value: "1"}]
        resources: {requests: {cpu: 10m, memory: 16Mi}}
YAML

shell_pod() { # name, script
    cat <<YAML
apiVersion: v1
kind: Pod
metadata: {name: $1, labels: {app: $1}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: ${3:-Always}
  containers: [{name: main, image: $BUSYBOX, imagePullPolicy: IfNotPresent, stdin: true, command: [sh, -c, '$2']}]
YAML
}

applying() {
    ok k apply -f "$work/web.yaml"; is "deployment.apps/web created"
    ok k apply -f "$work/web.yaml"; is "deployment.apps/web unchanged"
    ok k apply view-last-applied deployment/web; says "terminationGracePeriodSeconds: 1"
    sed 's/value: "1"/value: "2"/' "$work/web.yaml" >"$work/changed.yaml"
    if out=$(k diff -f "$work/changed.yaml"); then fail "diff saw no difference"; fi
    says '-          value: "1"' '+          value: "2"'
    ok k apply --dry-run=server -f "$work/changed.yaml"; is "deployment.apps/web configured (server dry run)"
    ok k get deployment web -o jsonpath='{.spec.template.spec.containers[0].env[0].value}'; is 1
    ok k apply -f "$work/changed.yaml"; is "deployment.apps/web configured"
    ok k diff -f "$work/changed.yaml"; is ""
    # From client-side apply to server-side apply: the fields change their manager, and can be removed.
    # kubectl tries this five times against other writers and then says nothing, hence the wait.
    ok k rollout status deployment/web --timeout=300s
    ok k apply --server-side -f "$work/changed.yaml"; is "deployment.apps/web serverside-applied"
    ok k get deployment web --show-managed-fields -o json; says '"operation": "Apply"'
    refused "conflict" k apply --server-side --field-manager=other -f "$work/web.yaml"
    says "Apply failed with 1 conflict" '.spec.template.spec.containers[name="nginx"].env[name="FIRST"].value'
    ok k apply --server-side --field-manager=other --force-conflicts -f "$work/web.yaml"
    ok k get deployment web -o jsonpath='{.spec.template.spec.containers[0].env[0].value}'; is 1
    ok k apply --server-side --force-conflicts -f "$work/web.yaml"
    ok k create --dry-run=server -o yaml configmap drawn --from-literal=a=b; says "uid:"
    refused 'configmaps "drawn" not found' k get configmap drawn
    refused ".dta: field not declared in schema" k apply --server-side --validate=strict -f - <<<'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"dta":{}}'
    refused 'unknown field "dta"' k create -f - <<<'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"},"dta":{}}'
    ok k create --validate=warn -f - <<<'{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"warned"},"dta":{}}'
    says 'Warning: unknown field "dta"'
    ok k rollout status deployment/web --timeout=300s; says "successfully rolled out"
}

reading() {
    pods_left 2
    ok k get all -o wide; says "deployment.apps/web" "replicaset.apps/web-" "CONTAINERS" "$NGINX" "2/2"
    ok k get deployment web -o yaml; says "kind: Deployment"; lacks "managedFields"
    ok k get deployment web -o name; is deployment.apps/web
    ok k get deployments -o custom-columns=NAME:.metadata.name,WANT:.spec.replicas --no-headers; is "web   2"
    until_says "xx" k get pods -l app=web -o jsonpath='{range .items[?(@.status.phase=="Running")]}x{end}'
    ok k get pods --field-selector=status.phase=Running -o name; says pod/web-
    ok k get pods --field-selector=status.phase=Failed -o name; is ""
    ok k get pods --chunk-size=1 -o name; is "$(k get pods -o name)"
    ok k get pods --sort-by=.metadata.name --show-labels; says pod-template-hash=
    ok k get pods -o go-template='{{range .items}}{{.kind}}{{end}}'; says PodPod
    ok k get --raw "/api/v1/namespaces/$NAMESPACE/pods?limit=1"; says remainingItemCount
    ok k get deployment web --subresource=status -o name; is deployment.apps/web
    ok k get deploy,rs,po -A; says deployment.apps/web replicaset.apps/web-
    ok k get nodes -o wide; says INTERNAL-IP containerd:// Ready
    ok k explain deployment --recursive; says "maxSurge" "terminationGracePeriodSeconds"
    ok k explain pod.spec.containers.resources; says "FIELDS" "Compute Resources"
    ok k explain --api-version=autoscaling/v2 horizontalpodautoscaler.spec.metrics; says "containerResource"
    refused 'field "nothing" does not exist' k explain pod.spec.nothing
    ok k api-resources -o wide; says "deploy" "apps/v1" "VERBS" "selfsubjectreviews" "create,delete,deletecollection,get,list,patch,update,watch"
    ok k api-resources --namespaced=false --verbs=list -o name; says "nodes" "clusterroles.rbac.authorization.k8s.io"
    ok k api-resources --api-group=batch --no-headers; says cronjobs jobs
    ok k api-versions; says "apps/v1" "rbac.authorization.k8s.io/v1" "v1"
    ok k cluster-info; says "Kubernetes control plane" "is running at"
    ok k cluster-info dump --namespaces "$NAMESPACE"; says '"kind": "PodList"' '==== START logs for container nginx'
    ok k version -o json; says '"major": "1"' '"minor": "37"'
    ok k events; says "Normal" "Started"
    ok k events --for deployment/web --types=Normal; says "ScalingReplicaSet" "Scaled up replica set web-"
    ok k get events --field-selector=reason=ScalingReplicaSet; says deployment/web
    until_says node-2 k top nodes; says "CPU(cores)"
    until_says web- k top pods; says "MEMORY(bytes)"
    refused 'the server doesn'\''t have a resource type "nonsense"' k get nonsense
    refused 'pods "absent" not found' k get pod absent
}

# Reads the object, edits it with sed, puts it back.
replacing() {
    k get "$1" "$2" -o yaml | sed "$3" | k replace -f -
}

changing() {
    ok k label deployment web tier=front; ok k label deployment web tier-; ok k label deployment web tier=front
    refused "already has a value" k label deployment web tier=back
    ok k label --overwrite deployment web tier=back; ok k get deployment -l tier=back -o name; is deployment.apps/web
    ok k annotate deployment web note="as people do"; ok k annotate --list deployment/web; says "note=as people do"
    ok k patch deployment web -p '{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"SECOND","value":"2"}]}]}}}}'
    ok k get deployment web -o jsonpath='{.spec.template.spec.containers[0].env[*].name}'; is "SECOND FIRST"
    ok k patch deployment web --type=merge -p '{"spec":{"revisionHistoryLimit":5}}'
    ok k patch deployment web --type=json -p '[{"op":"test","path":"/spec/revisionHistoryLimit","value":5},{"op":"remove","path":"/metadata/annotations/note"}]'
    refused "The request is invalid" k patch deployment web --type=json -p '[{"op":"remove","path":"/metadata/annotations/none"}]'
    ok k patch deployment web --subresource=scale --type=merge -p '{"spec":{"replicas":3}}'
    ok k patch configmap warned -p '{"metadata":{"labels":null}}'; says "patched (no change)"
    KUBE_EDITOR="sed -i s/revisionHistoryLimit:.5/revisionHistoryLimit:\ 6/" ok k edit deployment web; says "edited"
    KUBE_EDITOR="true" ok k edit deployment web; says "no changes made"
    until_says replaced replacing deployment web 's/revisionHistoryLimit: 6/revisionHistoryLimit: 7/'
    refused "the object has been modified" replacing deployment web 's/resourceVersion: .*/resourceVersion: "1"/'
    ok k set image deployment/web "nginx=$NGINX"
    ok k set env deployment/web THIRD=3; ok k set env deployment/web --list; says THIRD=3
    ok k set resources deployment/web --requests=cpu=5m; says "resource requirements updated"
    ok k set serviceaccount deployment/web default
    ok k scale deployment/web --replicas=1; says scaled
    refused "replicas to be 9" k scale deployment/web --current-replicas=9 --replicas=1
    ok k rollout status deployment/web --timeout=300s
    ok k autoscale deployment web --min=1 --max=3 --cpu-percent=80; says autoscaled
    ok k get hpa; says Deployment/web "80%"; ok k describe hpa web; says "Min replicas" "Max replicas"
    ok k delete hpa web
}

rolling() {
    ok k annotate deployment/web kubernetes.io/change-cause="as it was" --overwrite
    ok k rollout pause deployment/web; ok k set env deployment/web ROUND=paused
    refused "paused" k rollout restart deployment/web
    ok k rollout resume deployment/web; ok k rollout status deployment/web --timeout=300s
    ok k rollout history deployment/web; says "REVISION" "as it was"
    revision=$(k get deployment web -o jsonpath='{.metadata.annotations.deployment\.kubernetes\.io/revision}')
    ok k rollout history deployment/web --revision="$revision"; says "ROUND" "Pod Template"
    ok k rollout undo deployment/web; says "rolled back"; ok k rollout status deployment/web --timeout=300s
    ok k set env deployment/web --list; lacks ROUND
    ok k rollout restart deployment/web; says restarted; ok k rollout status deployment/web --timeout=300s
    ok k get deployment web -o yaml; says "kubectl.kubernetes.io/restartedAt"
}

exposing() {
    pods_left 1
    ok k expose deployment web --port=8080 --target-port=http --name=front
    ok k get service front -o jsonpath='{.spec.ports[0].targetPort} {.spec.selector.app}'; is "http web"
    until_says 1 k get endpointslices -l kubernetes.io/service-name=front -o jsonpath='{.items[0].endpoints[0].addresses[0]}'
    ok k create service nodeport door --tcp=80:80; ok k create service clusterip headless --clusterip=None
    ok k create service externalname outside --external-name example.com; ok k create service loadbalancer lb --tcp=80
    ok k get services -o wide; says NodePort ExternalName '<pending>' example.com
    ok k run fetch --rm -i --restart=Never --quiet --image="$BUSYBOX" --image-pull-policy=IfNotPresent --pod-running-timeout=5m -- sh -c 'read -r line; wget -qO- http://front:8080/' <<<"what is said before kubectl is attached would be lost"
    says "nginx"
    refused 'pods "fetch" not found' k get pod fetch
    "$KUBECTL" --namespace "$NAMESPACE" port-forward service/front :8080 >"$work/forward" 2>&1 & forward=$!
    until_says "Forwarding from 127.0.0.1:" cat "$work/forward"
    port=$(sed -n 's/.*127.0.0.1:\([0-9]*\).*/\1/p' "$work/forward")
    for _ in 1 2 3; do ok curl -sS --max-time 20 "http://127.0.0.1:$port/"; says nginx; done
    kill $forward; wait $forward 2>/dev/null || true
    "$KUBECTL" --namespace "$NAMESPACE" proxy --port=0 >"$work/proxy" & proxy=$!
    until_says "Starting to serve on" cat "$work/proxy"
    port=$(sed -n 's/.*127.0.0.1:\([0-9]*\).*/\1/p' "$work/proxy")
    ok curl -sS --max-time 20 "http://127.0.0.1:$port/api/v1/namespaces/$NAMESPACE/services/front:8080/proxy/"; says nginx
    kill $proxy; wait $proxy 2>/dev/null || true
}

entering() {
    shell_pod talker 'for i in 1 2 3; do echo line $i; done; while read -r line; do echo heard $line; done; sleep 3600' | ok k apply -f -
    shell_pod dying 'if [ -e /tmp/x ]; then sleep 3600; fi; echo last words; exit 3' | ok k apply -f -
    ok k wait pod/talker --for=condition=Ready --timeout=300s
    until_says "line 3" k logs talker
    ok k logs talker --tail=1; is "line 3"
    ok k logs talker --since=1h --timestamps; says "Z line 1"
    ok k logs -l app=talker --prefix; says "[pod/talker/main] line 2"
    ok k logs talker --limit-bytes=6; is "line 1"
    "$KUBECTL" --namespace "$NAMESPACE" logs -f talker >"$work/followed" & follow=$!
    until_says "line 3" cat "$work/followed"
    ok k exec talker -- sh -c 'echo one; echo two >&2'; says one two
    ok k exec -i talker -- cat <<<"through"; is through
    refused "exit code 42" k exec talker -- sh -c 'exit 42'
    refused "container nothing is not valid for pod talker" k logs talker -c nothing
    "$KUBECTL" --namespace "$NAMESPACE" attach -i talker <<<"hello" >"$work/attached" 2>&1 & attach=$!
    until_says "heard hello" cat "$work/followed"
    kill $attach $follow 2>/dev/null || true; wait $attach $follow 2>/dev/null || true
    until_says "last words" k logs dying --previous
    until_says CrashLoopBackOff k get pod dying
    ok k delete pod dying --now
    mkdir -p "$work/tree/deep"; echo content >"$work/tree/deep/file"; head -c 300000 /dev/urandom >"$work/tree/big"
    ok k cp "$work/tree" talker:/tmp/; ok k exec talker -- cat /tmp/tree/deep/file; is content
    ok k cp talker:/tmp/tree "$work/back"; ok diff -r "$work/tree" "$work/back"
    ok k debug talker --image="$BUSYBOX" --image-pull-policy=IfNotPresent --target=main -c looker -- sh -c 'echo looked around; sleep 3600'
    until_says "looked around" k logs talker -c looker
    ok k get pod talker -o jsonpath='{.spec.ephemeralContainers[0].targetContainerName}'; is main
    ok k describe pod talker; says "Ephemeral Containers:" "looker"
    ok k debug talker --copy-to=copied --image="$BUSYBOX" --image-pull-policy=IfNotPresent --share-processes -c side -- sleep 3600
    ok k wait pod/copied --for=condition=Ready --timeout=300s
    ok k exec copied -c side -- ps; says "while read"
    ok k debug node/node-2 --image="$BUSYBOX" --image-pull-policy=IfNotPresent -- sleep 3600
    debugger=$(k get pods -o name | grep node-debugger-node-2)
    ok k wait "$debugger" --for=condition=Ready --timeout=300s
    ok k exec "${debugger#pod/}" -- ls /host/etc/hostname; ok k delete "$debugger" --now
    ok k delete pod talker copied --now
}

describing() {
    ok k create configmap settings --from-literal=colour=blue --from-file="$work/web.yaml"
    ok k create secret generic hidden --from-literal=password=s3cret
    ok k create secret docker-registry pull --docker-server=r.example --docker-username=u --docker-password=p
    ok k create secret tls cert --cert="$work/tls.crt" --key="$work/tls.key"
    ok k create job once --image="$BUSYBOX" -- true
    ok k create cronjob often --image="$BUSYBOX" --schedule='*/5 * * * *' -- true
    ok k create job from --from=cronjob/often
    ok k create ingress way --rule='example.com/*=front:8080,tls=cert' --class=none
    ok k create quota lid --hard=pods=50; ok k create pdb keep --selector=app=web --min-available=1
    ok k create priorityclass "urgent-$NAMESPACE" --value=1000
    ok k create role reader --verb=get,list --resource=pods,deployments.apps
    ok k create rolebinding readers --role=reader --serviceaccount="$NAMESPACE:default" --user=jane
    ok k create clusterrole "reader-$NAMESPACE" --verb=get --resource=nodes
    ok k create clusterrolebinding "readers-$NAMESPACE" --clusterrole="reader-$NAMESPACE" --group=g
    ok k create serviceaccount robot
    sed "s/NAMESPACE/$NAMESPACE/" "$here/kinds.yaml" >"$work/kinds.yaml"; ok k apply -f "$work/kinds.yaml"
    ok k describe configmap settings; says colour blue
    ok k describe secret hidden; says "password:  6 bytes"
    ok k describe secret cert; says "kubernetes.io/tls"
    ok k describe deployment web; says "RollingUpdateStrategy" "NewReplicaSet" "ScalingReplicaSet" "Progressing"
    ok k describe replicaset -l app=web; says "Controlled By:" "Deployment/web"
    ok k describe pods -l app=web; says "QoS Class" "Burstable" "Scheduled" "Successfully assigned" "Pulled" "Started"
    ok k describe node node-1; says "Allocated resources" "containerd://" "PodCIDR" "KubeletReady" "Lease:"
    ok k describe service front; says "Endpoints:" "TargetPort" "http/TCP"
    ok k describe job once; says "Parallelism" "Completions" "SuccessfulCreate"
    ok k describe cronjob often; says "Schedule" "*/5 * * * *"
    ok k describe ingress way; says example.com "front:8080"
    ok k describe quota lid; says pods 50
    ok k describe pdb keep; says "Min available"
    ok k describe role reader; says "pods" "[get list]"
    ok k describe rolebinding readers; says "ServiceAccount" "jane"
    ok k describe clusterrole "reader-$NAMESPACE"; ok k describe clusterrolebinding "readers-$NAMESPACE"
    ok k describe serviceaccount robot; ok k describe namespace "$NAMESPACE"; says "Active" "lid"
    ok k describe statefulset ordered; ok k describe daemonset everywhere; says "Desired Number of Nodes Scheduled: 2"
    ok k describe pvc claim; says "Pending"; ok k describe pv "volume-$NAMESPACE"; ok k describe storageclass "class-$NAMESPACE"; says "example.com/none"
    ok k describe networkpolicy shut; says "Ingress"; ok k describe limitrange bounds; says "Container"
    ok k describe endpointslices; ok k describe lease -n kube-node-lease node-1; ok k describe priorityclass "urgent-$NAMESPACE"; says 1000
    ok k describe runtimeclass "runc-$NAMESPACE"; says runc
    ok k describe apiservice v1.apps; says Local
    ok k describe csr 2>&1
    ok k create deployment quick --image="$NGINX" --replicas=0 --port=80; ok k describe deployment quick; says "80/TCP"
    ok k delete job once from; ok k delete cronjob often
    ok k delete -f "$work/kinds.yaml" --wait=false
}

rights() {
    ok k auth can-i create deployments; is yes
    if out=$(k auth can-i create deployments --as=nobody); then fail "nobody may"; fi; is no
    ok k auth can-i list pods --as=jane; is yes
    ok k auth can-i --list --as=jane; says "deployments.apps" "[get list]" "selfsubjectaccessreviews.authorization.k8s.io"
    ok k auth can-i get /healthz --as=jane --as-group=system:authenticated; is yes
    if ((minor >= 28)); then # before, kubectl asks for alpha and beta versions that v1.37 has no more
        ok k auth whoami; says "Username" "system:masters"
        ok k auth whoami --as=jane --as-group=system:authenticated -o jsonpath='{.status.userInfo.username}'; is jane
    fi
    sed "s/NAMESPACE/$NAMESPACE/" "$here/rbac.yaml" >"$work/rbac.yaml"
    ok k auth reconcile -f "$work/rbac.yaml"; says "reconciled"
    ok k auth reconcile -f "$work/rbac.yaml" --remove-extra-permissions
    refused 'cannot list resource "secrets" in API group "" in the namespace' k get secrets --as=jane
    ok k create token robot --duration=10m; token=$out
    local server; server=$(k config view --minify -o jsonpath='{.clusters[0].cluster.server}')
    k config view --minify --raw -o jsonpath='{.clusters[0].cluster.certificate-authority-data}' | base64 -d >"$work/ca"
    refused no "$KUBECTL" --kubeconfig=/dev/null --server="$server" --certificate-authority="$work/ca" --token="$token" auth can-i get pods -n "$NAMESPACE"
    ok k create token robot --audience=vault --bound-object-kind=Secret --bound-object-name=hidden
    openssl req -new -newkey rsa:2048 -nodes -keyout "$work/jane.key" -subj /CN=jane -out "$work/jane.csr" 2>/dev/null
    sed "s/REQUEST/$(base64 -w0 <"$work/jane.csr")/; s/NAME/jane-$NAMESPACE/" "$here/csr.yaml" | ok k apply -f -
    ok k get csr "jane-$NAMESPACE"; says Pending kubernetes.io/kube-apiserver-client
    ok k certificate approve "jane-$NAMESPACE"; says approved
    until_says "Approved,Issued" k get csr "jane-$NAMESPACE"
    k get csr "jane-$NAMESPACE" -o jsonpath='{.status.certificate}' | base64 -d >"$work/jane.crt"
    ok "$KUBECTL" --kubeconfig=/dev/null --server="$server" --certificate-authority="$work/ca" --client-certificate="$work/jane.crt" --client-key="$work/jane.key" -n "$NAMESPACE" get pods -o name
    sed "s/REQUEST/$(base64 -w0 <"$work/jane.csr")/; s/NAME/not-$NAMESPACE/" "$here/csr.yaml" | ok k apply -f -
    ok k certificate deny "not-$NAMESPACE"; until_says Denied k get csr "not-$NAMESPACE"
    ok k delete csr "jane-$NAMESPACE" "not-$NAMESPACE"
}

nodes() {
    ok k taint nodes node-2 story=yes:NoSchedule; ok k get node node-2 -o jsonpath='{.spec.taints[0].key}'; is story
    refused "already has" k taint nodes node-2 story=no:NoSchedule
    ok k taint nodes node-2 story-; says untainted
    ok k cordon node-2; ok k get node node-2; says SchedulingDisabled
    # the budget of an earlier chapter would rightly keep web on the node, if it is there
    ok k delete pdb keep --ignore-not-found
    shell_pod lonely 'sleep 3600' | sed 's/^spec:/spec:\n  nodeName: node-2/' | ok k apply -f -
    ok k wait pod/lonely --for=condition=Ready --timeout=300s
    refused "cannot delete" k drain node-2 --ignore-daemonsets --pod-selector=app=lonely
    says "declare no controller"
    ok k drain node-2 --ignore-daemonsets --delete-emptydir-data --force --pod-selector='app in (lonely,web)' --timeout=300s; says "node/node-2 drained" "lonely evicted"
    ok k uncordon node-2; says uncordoned
    ok k get node node-2 -o jsonpath='{.spec.unschedulable}'; is ""
}

waiting() {
    ok k wait deployment/web --for=condition=Available --timeout=300s
    ok k wait deployment/web --for=jsonpath='{.metadata.name}'=web --timeout=300s
    shell_pod brief 'sleep 1' Never | ok k apply -f -
    ok k wait pod/brief --for=jsonpath='{.status.phase}'=Succeeded --timeout=300s
    refused "timed out waiting" k wait deployment/web --for=condition=Nothing --timeout=1s
    "$KUBECTL" --namespace "$NAMESPACE" wait pod/brief --for=delete --timeout=300s & local waiter=$!
    ok k delete pod brief; wait $waiter || fail "wait --for=delete"
    if ((minor >= 31)); then
        k wait configmap/later --for=create --timeout=60s & waiter=$!
        ok k create configmap later; wait $waiter || fail "wait --for=create"
    fi
    "$KUBECTL" --namespace "$NAMESPACE" get configmaps --watch --output-watch-events >"$work/watched" & watch=$!
    until_says kube-root-ca.crt cat "$work/watched"
    ok k create configmap seen; ok k label configmap seen a=b; ok k delete configmap seen
    until_says DELETED cat "$work/watched"; says ADDED MODIFIED
    kill $watch; wait $watch 2>/dev/null || true
}

gathering() {
    ok k apply -k "$here/kustomize"; says "configmap/kustomized-settings-" "deployment.apps/kustomized-web"
    ok k get deployment kustomized-web -o jsonpath='{.metadata.labels.from} {.spec.replicas}'; is "kustomize 0"
    ok k diff -k "$here/kustomize"
    ok k delete -k "$here/kustomize"
    mkdir -p "$work/set"; ok k create configmap first --dry-run=client -o yaml; echo "$out" >"$work/set/first.yaml"
    ok k create configmap second --dry-run=client -o yaml; echo "$out" >"$work/set/second.yaml"
    sed -i 's/^metadata:/metadata:\n  labels: {set: pruned}/' "$work"/set/*.yaml
    ok k apply -f "$work/set" --prune -l set=pruned --prune-allowlist=core/v1/ConfigMap
    rm "$work/set/second.yaml"
    ok k apply -f "$work/set" --prune -l set=pruned --prune-allowlist=core/v1/ConfigMap; says "configmap/second pruned"
    ok k delete configmap first
    cp "$work/set/first.yaml" "$work/set/third.yaml"; sed -i s/first/third/ "$work/set/third.yaml"
    KUBECTL_APPLYSET=true ok k apply -f "$work/set" --prune --applyset=things
    rm "$work/set/third.yaml"
    KUBECTL_APPLYSET=true ok k apply -f "$work/set" --prune --applyset=things; says "configmap/third pruned"
    ok k get secret things -o jsonpath='{.metadata.labels.applyset\.kubernetes\.io/id}'; says applyset-
    ok k apply -f "$here/list.yaml"; says "configmap/of-list-1 created" "configmap/of-list-2 created" "service/of-list created"
    ok k delete -f "$here/list.yaml"
}

deleting() {
    ok k create deployment gone --image="$NGINX" --replicas=1
    until_says gone- k get rs -l app=gone -o name
    ok k delete deployment gone --cascade=orphan
    ok k get rs -l app=gone -o jsonpath='{.items[*].metadata.ownerReferences}'; until_says "" true
    ok k get rs -l app=gone -o name; says replicaset
    ok k delete rs -l app=gone --cascade=foreground; ok k get rs -l app=gone -o name; is ""
    ok k wait pod -l app=gone --for=delete --timeout=300s
    ok k create configmap a; ok k create configmap b
    ok k delete configmap a b; says 'configmap "a" deleted' 'configmap "b" deleted'
    ok k delete configmap a --ignore-not-found; refused "not found" k delete configmap a
    shell_pod stubborn 'trap "" TERM; while true; do sleep 1; done' | ok k apply -f -
    ok k wait pod/stubborn --for=condition=Ready --timeout=300s
    ok k delete pod stubborn --force --grace-period=0; says "force deleted"
    ok k delete all --all --timeout=300s
    until_says "No resources found" k get pods
}

ending() {
    ok k delete priorityclass "urgent-$NAMESPACE"
    ok k delete clusterrole,clusterrolebinding "reader-$NAMESPACE" "readers-$NAMESPACE" --ignore-not-found
    ok "$KUBECTL" delete namespace "$NAMESPACE" --timeout=300s
}

"$KUBECTL" create namespace "$NAMESPACE" >/dev/null || [ $# -gt 0 ]
openssl req -x509 -newkey rsa:2048 -nodes -keyout "$work/tls.key" -out "$work/tls.crt" -subj /CN=story -days 2 2>/dev/null
[ $# -gt 0 ] || set -- applying reading changing rolling exposing entering describing rights nodes waiting gathering deleting ending
for chapter in "$@"; do
    "$chapter"
    echo "kubectl 1.$minor: $chapter: ok"
done
