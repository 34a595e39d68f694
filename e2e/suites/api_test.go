//go:build e2e

package suites

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The API server without kubectl: what is looked at many times a second must not cost
// the machine, which is being measured, a process each time.

var api = sync.OnceValues(func() (func(method, path string, body io.Reader) ([]byte, error), error) {
	config, err := clientcmd.BuildConfigFromFlags("", os.Getenv("KUBECONFIG"))
	if err != nil {
		return nil, err
	}
	hc, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	return func(method, path string, body io.Reader) ([]byte, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(config.Host, "/")+path, body)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := hc.Do(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode/100 != 2 {
			err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
		}
		return b, err
	}, nil
})

// fetch reads an object, or a list, of the release's namespace.
func fetch[T any](c *cluster, group, what string) (T, error) {
	var v T
	do, err := api()
	if err != nil {
		return v, err
	}
	b, err := do(http.MethodGet, group+"/namespaces/"+c.namespace+"/"+what, nil)
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(b, &v)
}

// listPods lists the pods of a component of the release, or those with a label besides.
func (c *cluster) listPods(component, labels string) ([]pod, error) {
	selector := "app.kubernetes.io/component=" + component + ",app.kubernetes.io/instance=" + c.release
	if labels != "" {
		selector += "," + labels
	}
	list, err := fetch[struct{ Items []pod }](c, "/api/v1", "pods?labelSelector="+url.QueryEscape(selector))
	return list.Items, err
}

// deletePod deletes a pod's object; nil seconds leave it the time that it asks for, 0
// kills it.
func (c *cluster) deletePod(pod string, seconds *int) error {
	do, err := api()
	if err != nil {
		return err
	}
	options, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": seconds})
	if err != nil {
		return err
	}
	_, err = do(http.MethodDelete, "/api/v1/namespaces/"+c.namespace+"/pods/"+pod, strings.NewReader(string(options)))
	return err
}
