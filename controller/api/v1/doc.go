// Package v1 is the vocabulary in which people ask for a flare cluster and read
// what became of it: the FlareCluster resource, group flarekv.io, version v1.
//
// It holds data and pure functions only; it can be used without Kubernetes (a
// standalone controller reads its spec from a file) and knows no client.
//
// The CustomResourceDefinition is generated from these types, see "go generate".
// The copy beside this file is embedded by [CustomResourceDefinition]; the one in
// charts/flare/crds is what helm installs. A test keeps the two the same.
//
// +kubebuilder:object:generate=true
// +groupName=flarekv.io
package v1

//go:generate ../../../build/bin/controller-gen object crd:allowDangerousTypes=true paths=. output:crd:dir=.
//go:generate cp flarekv.io_flareclusters.yaml ../../../charts/flare/crds/flareclusters.yaml
