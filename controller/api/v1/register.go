package v1

import (
	_ "embed"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Names under which the API server knows the resource.
const (
	Group    = "flarekv.io"
	Version  = "v1"
	Kind     = "FlareCluster"
	Resource = "flareclusters"
)

var (
	// GroupVersion is flarekv.io/v1.
	GroupVersion = schema.GroupVersion{Group: Group, Version: Version}
	// GroupVersionResource names the resource in request paths.
	GroupVersionResource = GroupVersion.WithResource(Resource)
	// GroupVersionKind names the resource in objects and owner references.
	GroupVersionKind = GroupVersion.WithKind(Kind)
)

//go:embed flarekv.io_flareclusters.yaml
var crd []byte

// CustomResourceDefinition returns the YAML that teaches an API server this
// version of the resource. The caller owns the copy.
func CustomResourceDefinition() []byte { return append([]byte(nil), crd...) }

// AddToScheme registers the types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &FlareCluster{}, &FlareClusterList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
