package kube

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kuberuntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"

	v1 "github.com/flarekv/flare/controller/api/v1"
)

const crdName = "flareclusters.flarekv.io"

func crdWorld(objects ...kuberuntime.Object) *dynamicfake.FakeDynamicClient {
	return dynamicfake.NewSimpleDynamicClientWithCustomListKinds(kuberuntime.NewScheme(), map[schema.GroupVersionResource]string{
		v1.GroupVersionResource: "FlareClusterList",
		crdResource:             "CustomResourceDefinitionList",
	}, objects...)
}

func definition(status string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": crdName},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Established", "status": status}}},
	}}
}

func cluster(namespace string, deleting bool) *unstructured.Unstructured {
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "flarekv.io/v1", "kind": "FlareCluster",
		"metadata": map[string]any{"name": "flare", "namespace": namespace},
	}}
	if deleting {
		u.SetDeletionTimestamp(new(metav1.Now()))
	}
	return u
}

func TestApplyCRDWaitsUntilItIsServed(t *testing.T) {
	client := crdWorld()
	var patch clienttesting.PatchActionImpl
	client.PrependReactor("patch", "customresourcedefinitions", func(a clienttesting.Action) (bool, kuberuntime.Object, error) {
		patch = a.(clienttesting.PatchActionImpl)
		return true, definition("False"), client.Tracker().Add(definition("False"))
	})
	reads := 0
	client.PrependReactor("get", "customresourcedefinitions", func(clienttesting.Action) (bool, kuberuntime.Object, error) {
		reads++
		if reads < 2 {
			return true, definition("False"), nil
		}
		return true, definition("True"), nil
	})
	if err := ApplyCRD(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if patch.GetPatchType() != types.ApplyPatchType || patch.GetName() != crdName {
		t.Errorf("patch: %v of %q", patch.GetPatchType(), patch.GetName())
	}
	if reads != 2 {
		t.Errorf("%d reads, want 2: it must wait until the definition is established", reads)
	}
}

func TestDeleteUnusedCRD(t *testing.T) {
	there := func(client *dynamicfake.FakeDynamicClient) bool {
		_, err := client.Resource(crdResource).Get(t.Context(), crdName, metav1.GetOptions{})
		return err == nil
	}
	t.Run("unused", func(t *testing.T) {
		client := crdWorld(definition("True"))
		if deleted, left, err := DeleteUnusedCRD(t.Context(), client); !deleted || left != nil || err != nil || there(client) {
			t.Errorf("deleted %v, left %v, %v", deleted, left, err)
		}
	})
	t.Run("used elsewhere", func(t *testing.T) {
		client := crdWorld(definition("True"), cluster("a", false), cluster("b", true))
		deleted, left, err := DeleteUnusedCRD(t.Context(), client)
		if deleted || !slices.Equal(left, []string{"a/flare"}) || err != nil || !there(client) {
			t.Errorf("deleted %v, left %v, %v", deleted, left, err)
		}
	})
	t.Run("the last one is still going", func(t *testing.T) {
		client := crdWorld(definition("True"), cluster("b", true))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if deleted, _, err := DeleteUnusedCRD(ctx, client); deleted || !errors.Is(err, context.DeadlineExceeded) || !there(client) {
			t.Errorf("deleted %v, %v", deleted, err)
		}
	})
	t.Run("never defined", func(t *testing.T) {
		if _, _, err := DeleteUnusedCRD(t.Context(), crdWorld()); err != nil {
			t.Error(err)
		}
	})
}
