package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	v1 "github.com/flarekv/flare/controller/api/v1"
)

var crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// crdManager is the field manager of the definition, so that a later version
// takes away what an earlier one wrote.
const crdManager = "flare-crd"

// ApplyCRD makes the API server know this version's FlareCluster, and returns
// when it serves it. Helm installs a definition but never updates one.
func ApplyCRD(ctx context.Context, client dynamic.Interface) error {
	definition := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(v1.CustomResourceDefinition(), &definition.Object); err != nil {
		return fmt.Errorf("read the built-in definition: %w", err)
	}
	body, err := json.Marshal(definition.Object)
	if err != nil {
		return fmt.Errorf("encode the definition: %w", err)
	}
	name := definition.GetName()
	crds := client.Resource(crdResource)
	err = retry(ctx, "apply CustomResourceDefinition "+name, nil, func(ctx context.Context) error {
		_, err := crds.Patch(ctx, name, types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: crdManager, Force: new(true)})
		return err
	})
	if err != nil {
		return err
	}
	for {
		var found *unstructured.Unstructured
		err := retry(ctx, "read CustomResourceDefinition "+name, nil, func(ctx context.Context) (err error) {
			found, err = crds.Get(ctx, name, metav1.GetOptions{})
			return err
		})
		if err != nil {
			return err
		}
		if established(found) {
			return nil
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("CustomResourceDefinition %s is not established: %w", name, ctx.Err())
		}
	}
}

func established(crd *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, c := range conditions {
		if m, ok := c.(map[string]any); ok && m["type"] == "Established" {
			return m["status"] == "True"
		}
	}
	return false
}

// DeleteUnusedCRD deletes the definition, unless a FlareCluster is left in any
// namespace: deleting it would delete that too. It waits for clusters that are
// being deleted until ctx ends.
func DeleteUnusedCRD(ctx context.Context, client dynamic.Interface) (deleted bool, left []string, err error) {
	name := v1.Resource + "." + v1.Group
	for {
		left = nil
		going := 0
		err = retry(ctx, "list FlareClusters", nil, func(ctx context.Context) error {
			list, err := client.Resource(v1.GroupVersionResource).List(ctx, metav1.ListOptions{})
			if apierrors.IsNotFound(err) {
				return nil // no definition, so none of them
			}
			if err != nil {
				return err
			}
			for _, fc := range list.Items {
				if fc.GetDeletionTimestamp() != nil {
					going++
				} else {
					left = append(left, fc.GetNamespace()+"/"+fc.GetName())
				}
			}
			return nil
		})
		if err != nil {
			return false, nil, err
		}
		if len(left) > 0 {
			return false, left, nil
		}
		if going == 0 {
			break
		}
		timer := time.NewTimer(500 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false, nil, fmt.Errorf("%d FlareClusters are still being deleted: %w", going, ctx.Err())
		}
	}
	err = retry(ctx, "delete CustomResourceDefinition "+name, nil, func(ctx context.Context) error {
		err := client.Resource(crdResource).Delete(ctx, name, metav1.DeleteOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	return err == nil, nil, err
}
