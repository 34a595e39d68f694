#!/bin/bash
# make up: flare installed and Ready on a Kubernetes. Without CONTEXT that
# Kubernetes is the lab, brought up on this machine; with it, the cluster of
# that kubeconfig context is used as it is. Running it again is fine.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %4d s  %s\n' "$SECONDS" "$*"; }
lab() { "$BUILD/bin/lab" "$@"; }

step "building the programs and their images"
make -s images

kube=() helm_context=()
if [ -n "${CONTEXT:-}" ]; then
  for tool in kubectl helm; do
    command -v $tool >/dev/null || { echo "make up CONTEXT=$CONTEXT needs $tool on the PATH" >&2; exit 1; }
  done
  kube=(--context "$CONTEXT") helm_context=(--kube-context "$CONTEXT")
  case $CONTEXT in
    kind-*) step "loading the images into ${CONTEXT#kind-}"
      for i in "$BUILD"/images/*.tar; do kind load image-archive "$i" --name "${CONTEXT#kind-}"; done ;;
    *) echo "The nodes of $CONTEXT must be able to get the images named in $BUILD/images/values.yaml:"
       echo "load $BUILD/images/*.tar into them, or push them and give your own values with VALUES=file.yaml" ;;
  esac
else
  step "Kubernetes: building"
  mkdir -p "$BUILD/bin"
  go build -o "$BUILD/bin/lab" ./e2e/lab/cmd/lab
  lab build
  step "Kubernetes: starting three nodes in three zones"
  lab up
  eval "$(lab env)"
  step "loading the images"
  lab load "$BUILD"/images/*.tar
fi

step "helm upgrade --install $RELEASE charts/flare"
helm "${helm_context[@]}" upgrade --install "$RELEASE" charts/flare -n "$NAMESPACE" --create-namespace \
  -f "$BUILD/images/values.yaml" ${VALUES:+-f "$VALUES"} --wait --timeout 5m >/dev/null

step "waiting until every partition has its master and its replicas in sync"
k() { kubectl "${kube[@]}" -n "$NAMESPACE" "$@"; }
{ k wait "flarecluster/$RELEASE" --for=condition=Ready --timeout=180s &&
  k wait "flarecluster/$RELEASE" --for=condition=Degraded=False --timeout=180s; } >/dev/null || {
  k get flarecluster,pods -o wide
  k describe "flarecluster/$RELEASE" | tail -20
  exit 1
}
k get flarecluster,pods

address=$(k get service "$RELEASE" -o jsonpath='{.spec.clusterIP}')
agent=$(k get pod "$RELEASE-0" -o jsonpath='{.status.podIP}')
step "Ready"
if [ -z "${CONTEXT:-}" ]; then
  cat <<TXT

Clients of memcached connect to $address:12121. Try next, in this order:

  eval "\$(${BUILD#"$PWD"/}/bin/lab env)"        # kubectl, helm and grpcurl for this cluster
  exec 3<>/dev/tcp/$address/12121; printf 'set hello 0 0 5\r\nworld\r\nget hello\r\nquit\r\n' >&3; cat <&3
  grpcurl -plaintext $agent:13121 flare.agent.v1.AgentService/GetStatus

make down removes everything again.
TXT
else
  cat <<TXT

Clients of memcached inside the cluster connect to $RELEASE.$NAMESPACE.svc:12121. Try next:

  kubectl ${kube[*]} -n $NAMESPACE port-forward service/$RELEASE 12121 &
  exec 3<>/dev/tcp/localhost/12121; printf 'set hello 0 0 5\r\nworld\r\nget hello\r\nquit\r\n' >&3; cat <&3
  kubectl ${kube[*]} -n $NAMESPACE get flarecluster

make down CONTEXT=$CONTEXT removes the release and its namespace.
TXT
fi
