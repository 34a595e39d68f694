package kube

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// manager is the field manager of what belongs to the controller as a whole.
const manager = "flare-controller"

// applyOptions is for a server-side apply whose fields are this program's, whoever
// wrote them before.
func applyOptions(manager string) metav1.PatchOptions {
	return metav1.PatchOptions{FieldManager: manager, Force: new(true)}
}

// applyBody is the body of a server-side apply: the fields that its manager wants, all
// of them, and no others.
func applyBody(apiVersion, kind string, meta any, fields map[string]any) ([]byte, error) {
	o := map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": meta}
	for k, v := range fields {
		o[k] = v
	}
	b, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", kind, err)
	}
	return b, nil
}
