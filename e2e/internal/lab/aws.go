package lab

import (
	"context"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"strings"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2/client"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/kube-kek/kube-kek/e2e/internal/parts"
	"github.com/kube-kek/kube-kek/kek/awskms/awskmstest"
)

const region = "eu-west-1"

// AWS is the stand-in for AWS KMS, over TLS under an authority of its own, with
// one key. Between it and the plugin is a proxy, which makes the faults; what an
// operator does to the key goes past the proxy, by the official SDK.
type AWS struct {
	Server *awskmstest.Server
	ARN    string   // of the key
	Env    []string // the plugin's credentials, as the SDKs read them

	lab       *Lab
	operator  *kms.Client
	principal string // the plugin's ARN
	endpoint  string
	bundle    string
	proxy     *toxiproxy.Proxy // nil: none between
}

// StartAWS starts the stand-in behind a fault proxy. Plugins that are started
// later have credentials for it.
func (l *Lab) StartAWS() *AWS {
	l.Helper()
	a, direct := l.startAWS()
	api := l.freePort()
	p := l.run("toxiproxy", parts.Toxiproxy, []string{"LOG_LEVEL=warn"}, "-host", loopback, "-port", portOf(api))
	client := toxiproxy.NewClient(address(api))
	l.waitFor("toxiproxy", p, 10*time.Second, func() error { _, err := client.Proxies(); return err })
	proxy, err := client.CreateProxy("kms", loopback+":0", strings.TrimPrefix(direct, "https://"))
	if err != nil {
		l.Fatalf("making a proxy: %v", err)
	}
	a.proxy, a.endpoint = proxy, "https://"+proxy.Listen
	return a
}

// StartAWSDirect starts the stand-in with no proxy, and so without a process.
func (l *Lab) StartAWSDirect() *AWS {
	l.Helper()
	a, direct := l.startAWS()
	a.endpoint = direct
	return a
}

func (l *Lab) startAWS() (a *AWS, direct string) {
	l.Helper()
	s := awskmstest.New(awskmstest.Config{Region: region})
	server := httptest.NewUnstartedServer(s)
	// Handshakes that a fault cuts short are no news.
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	l.Cleanup(server.Close)
	// What the documentation tells operators to allow, and nothing else.
	plugin := s.AddPrincipal(awskmstest.Principal{Allow: []string{"kms:DescribeKey", "kms:Encrypt", "kms:Decrypt"}})
	operator := s.AddPrincipal(awskmstest.Principal{Allow: []string{"kms:*"}})
	a = &AWS{
		Server: s, lab: l, principal: plugin.ARN,
		bundle: l.Write("kms-ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
		Env: []string{
			"AWS_ACCESS_KEY_ID=" + plugin.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + plugin.SecretAccessKey,
			"AWS_EC2_METADATA_DISABLED=true",
		},
		operator: kms.New(kms.Options{
			Region: region, BaseEndpoint: aws.String(server.URL), HTTPClient: server.Client(),
			Credentials: credentials.NewStaticCredentialsProvider(operator.AccessKeyID, operator.SecretAccessKey, ""),
		}),
	}
	key, err := a.operator.CreateKey(l.Context(), &kms.CreateKeyInput{})
	if err != nil {
		l.Fatalf("making a key: %v", err)
	}
	a.ARN = aws.ToString(key.KeyMetadata.Arn)
	l.pluginEnv = a.Env
	return a, server.URL
}

// KEK is the stand-in's key in the plugin's configuration.
func (a *AWS) KEK() KEK {
	return KEK{URI: "awskms:///" + a.ARN, AWS: map[string]string{"endpoint": a.endpoint, "caBundle": a.bundle}}
}

// Calls counts what the plugin asked since the start, answered or refused.
func (a *AWS) Calls() int { return a.Server.CallsBy(a.principal, "") }

// Reset makes the network reset every connection to the KMS on its first byte.
func (a *AWS) Reset() { a.toxic("reset_peer", toxiproxy.Attributes{"timeout": 0}) }

// Hang makes the network swallow every byte to the KMS.
func (a *AWS) Hang() { a.toxic("timeout", toxiproxy.Attributes{"timeout": 0}) }

// Slow makes every answer of the KMS late.
func (a *AWS) Slow(by time.Duration) {
	a.toxic("latency", toxiproxy.Attributes{"latency": by.Milliseconds()})
}

func (a *AWS) toxic(kind string, attributes toxiproxy.Attributes) {
	a.lab.Helper()
	a.Restore()
	if _, err := a.proxy.AddToxic(kind, kind, "upstream", 1, attributes); err != nil {
		a.lab.Fatalf("%s at the proxy: %v", kind, err)
	}
}

// Restore makes the network well again.
func (a *AWS) Restore() {
	a.lab.Helper()
	toxics, err := a.proxy.Toxics()
	if err != nil {
		a.lab.Fatalf("%v", err)
	}
	for _, t := range toxics {
		if err := a.proxy.RemoveToxic(t.Name); err != nil {
			a.lab.Fatalf("%v", err)
		}
	}
}

// Rotate, Disable and Enable are what an operator does to the key.
func (a *AWS) Rotate() {
	a.lab.Helper()
	do(a, a.operator.RotateKeyOnDemand, &kms.RotateKeyOnDemandInput{KeyId: &a.ARN})
}

// Disable makes the KMS say no.
func (a *AWS) Disable() {
	a.lab.Helper()
	do(a, a.operator.DisableKey, &kms.DisableKeyInput{KeyId: &a.ARN})
}

// Enable makes the KMS say yes again.
func (a *AWS) Enable() {
	a.lab.Helper()
	do(a, a.operator.EnableKey, &kms.EnableKeyInput{KeyId: &a.ARN})
}

func do[In, Out any](a *AWS, call func(context.Context, *In, ...func(*kms.Options)) (*Out, error), in *In) {
	a.lab.Helper()
	if _, err := call(a.lab.Context(), in); err != nil {
		a.lab.Fatalf("%v", err)
	}
}
