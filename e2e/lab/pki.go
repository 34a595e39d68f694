package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const certLife = 365 * 24 * time.Hour

// user is somebody the API server knows by a token.
type user struct {
	file   string // kubeconfig, in the lab's directory
	name   string
	groups []string
}

func users(nodes []Node) []user {
	all := []user{
		{"admin.conf", "admin", []string{"system:masters"}},
		{"controller-manager.conf", "system:kube-controller-manager", nil},
		{"scheduler.conf", "system:kube-scheduler", nil},
		{"proxy.conf", "system:kube-proxy", nil},
	}
	for _, n := range nodes {
		all = append(all, user{n.Name + ".conf", "system:node:" + n.Name, []string{"system:nodes"}})
	}
	return all
}

// writePKI makes everything that proves an identity in this lab: the CA, the
// API server's certificate, the service-account key, tokens and kubeconfigs.
func writePKI(dir string, nodes []Node) error {
	pki := filepath.Join(dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return err
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "flare lab"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return fmt.Errorf("make CA: %w", err)
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local"},
	}
	for _, addr := range []netip.Addr{controlAddr, apiService} {
		server.IPAddresses = append(server.IPAddresses, net.IP(addr.AsSlice()))
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, serverKey.Public(), caKey)
	if err != nil {
		return fmt.Errorf("make API server certificate: %w", err)
	}
	accountKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})

	files := map[string][]byte{
		"ca.crt":     caPEM,
		"server.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: serverDER}),
	}
	if files["server.key"], err = keyPEM(serverKey); err != nil {
		return err
	}
	if files["accounts.key"], err = keyPEM(accountKey); err != nil {
		return err
	}
	var tokens strings.Builder
	for i, u := range users(nodes) {
		token := rand.Text()
		fmt.Fprintf(&tokens, "%s,%s,%d,%q\n", token, u.name, i, strings.Join(u.groups, ","))
		if err := os.WriteFile(filepath.Join(dir, u.file), kubeconfig(caPEM, token), 0o600); err != nil {
			return err
		}
	}
	files["tokens.csv"] = []byte(tokens.String())
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(pki, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func keyPEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func kubeconfig(ca []byte, token string) []byte {
	data, err := json.MarshalIndent(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "flare-lab",
		"clusters": []object{{"name": "flare-lab", "cluster": object{
			"server":                     fmt.Sprintf("https://%s:%d", controlAddr, apiPort),
			"certificate-authority-data": base64.StdEncoding.EncodeToString(ca),
		}}},
		"users":    []object{{"name": "me", "user": object{"token": token}}},
		"contexts": []object{{"name": "flare-lab", "context": object{"cluster": "flare-lab", "user": "me"}}},
	}, "", "  ")
	if err != nil {
		panic(err) // only strings in it
	}
	return data
}

// object is a JSON object; Kubernetes takes JSON wherever it takes YAML.
type object = map[string]any
