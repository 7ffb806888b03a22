package awskmstest

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// The limits of KMS, in bytes.
const (
	maxPlaintext  = 4096
	maxCiphertext = 6144
)

// keyRequest is the input of the operations that only name a key.
type keyRequest struct{ KeyId string }

type keyReply struct{ KeyId string }

func (s *Server) kmsActions() map[string]action {
	return map[string]action{
		"Encrypt":              handle(s, s.encrypt, "kms:Encrypt"),
		"Decrypt":              handle(s, s.decrypt, "kms:Decrypt"),
		"GenerateDataKey":      handle(s, s.generateDataKey, "kms:GenerateDataKey"),
		"ReEncrypt":            handle(s, s.reEncrypt, "kms:ReEncryptFrom", "kms:ReEncryptTo"),
		"CreateKey":            handle(s, s.createKey, "kms:CreateKey"),
		"DescribeKey":          handle(s, s.describeKey, "kms:DescribeKey"),
		"DisableKey":           handle(s, s.disableKey, "kms:DisableKey"),
		"EnableKey":            handle(s, s.enableKey, "kms:EnableKey"),
		"ScheduleKeyDeletion":  handle(s, s.scheduleKeyDeletion, "kms:ScheduleKeyDeletion"),
		"CancelKeyDeletion":    handle(s, s.cancelKeyDeletion, "kms:CancelKeyDeletion"),
		"RotateKeyOnDemand":    handle(s, s.rotateKeyOnDemand, "kms:RotateKeyOnDemand"),
		"EnableKeyRotation":    handle(s, s.enableKeyRotation, "kms:EnableKeyRotation"),
		"DisableKeyRotation":   handle(s, s.disableKeyRotation, "kms:DisableKeyRotation"),
		"GetKeyRotationStatus": handle(s, s.getKeyRotationStatus, "kms:GetKeyRotationStatus"),
		"ListKeyRotations":     handle(s, s.listKeyRotations, "kms:ListKeyRotations"),
		"CreateAlias":          handle(s, s.createAlias, "kms:CreateAlias"),
		"UpdateAlias":          handle(s, s.updateAlias, "kms:UpdateAlias"),
		"DeleteAlias":          handle(s, s.deleteAlias, "kms:DeleteAlias"),
		"ListAliases":          handle(s, s.listAliases, "kms:ListAliases"),
	}
}

// materialID is what a reply tells of a key material.
func (s *Server) materialID(m material) string {
	if s.config.WithoutMaterialIDs {
		return ""
	}
	return m.name()
}

func outOfRange(member string, n, least, most int) *apiError {
	if n >= least && n <= most {
		return nil
	}
	word, limit := "greater than or equal to", least
	if n > most {
		word, limit = "less than or equal to", most
	}
	return refuse("ValidationException",
		"1 validation error detected: Value at '%s' failed to satisfy constraint: Member must have length %s %d", member, word, limit)
}

type encryptRequest struct {
	KeyId               string
	Plaintext           []byte
	EncryptionContext   map[string]string
	EncryptionAlgorithm string
}

type encryptReply struct {
	CiphertextBlob      []byte
	KeyId               string
	EncryptionAlgorithm string
}

func (s *Server) encrypt(in encryptRequest) (any, *apiError) {
	if e := outOfRange("plaintext", len(in.Plaintext), 1, maxPlaintext); e != nil {
		return nil, e
	}
	k, e := s.forEncryption(in.KeyId, in.EncryptionAlgorithm)
	if e != nil {
		return nil, e
	}
	return encryptReply{k.seal(k.current(k.lag.Encrypt), in.Plaintext, in.EncryptionContext), k.arn, symmetric}, nil
}

// forEncryption finds a key to encrypt with.
func (s *Server) forEncryption(id, algorithm string) (*key, *apiError) {
	k, e := s.find(id)
	if e != nil {
		return nil, e
	}
	if e := k.canEncrypt(); e != nil {
		return nil, e
	}
	return k, symmetricOnly(algorithm)
}

func symmetricOnly(algorithm string) *apiError {
	if algorithm != "" && algorithm != symmetric {
		return refuse("InvalidKeyUsageException", "Algorithm %s is incompatible with key spec %s.", algorithm, symmetric)
	}
	return nil
}

type decryptRequest struct {
	CiphertextBlob      []byte
	KeyId               string
	EncryptionContext   map[string]string
	EncryptionAlgorithm string
}

type decryptReply struct {
	Plaintext           []byte
	KeyId               string
	KeyMaterialId       string `json:",omitempty"`
	EncryptionAlgorithm string
}

func (s *Server) decrypt(in decryptRequest) (any, *apiError) {
	if e := outOfRange("ciphertextBlob", len(in.CiphertextBlob), 1, maxCiphertext); e != nil {
		return nil, e
	}
	if e := symmetricOnly(in.EncryptionAlgorithm); e != nil {
		return nil, e
	}
	k, m, plaintext, e := s.open(in.CiphertextBlob, in.KeyId, in.EncryptionContext)
	if e != nil {
		return nil, e
	}
	return decryptReply{plaintext, k.arn, s.materialID(m), symmetric}, nil
}

type generateDataKeyRequest struct {
	KeyId             string
	KeySpec           string
	NumberOfBytes     *int
	EncryptionContext map[string]string
}

type generateDataKeyReply struct {
	CiphertextBlob []byte
	Plaintext      []byte
	KeyId          string
	KeyMaterialId  string `json:",omitempty"`
}

func (s *Server) generateDataKey(in generateDataKeyRequest) (any, *apiError) {
	sizes := map[string]int{"AES_128": 16, "AES_256": 32}
	size, known := sizes[in.KeySpec]
	if in.NumberOfBytes != nil {
		size = *in.NumberOfBytes
	}
	if (in.KeySpec != "") == (in.NumberOfBytes != nil) || in.KeySpec != "" && !known {
		return nil, refuse("ValidationException", "Please specify either number of bytes or key spec.")
	}
	if e := outOfRange("numberOfBytes", size, 1, 1024); e != nil {
		return nil, e
	}
	k, e := s.forEncryption(in.KeyId, "")
	if e != nil {
		return nil, e
	}
	plaintext, m := randomBytes(size), k.current(k.lag.Encrypt)
	return generateDataKeyReply{k.seal(m, plaintext, in.EncryptionContext), plaintext, k.arn, s.materialID(m)}, nil
}

type reEncryptRequest struct {
	CiphertextBlob                                            []byte
	SourceKeyId, DestinationKeyId                             string
	SourceEncryptionContext, DestinationEncryptionContext     map[string]string
	SourceEncryptionAlgorithm, DestinationEncryptionAlgorithm string
}

type reEncryptReply struct {
	CiphertextBlob                                            []byte
	SourceKeyId, KeyId                                        string
	SourceKeyMaterialId                                       string `json:",omitempty"`
	DestinationKeyMaterialId                                  string `json:",omitempty"`
	SourceEncryptionAlgorithm, DestinationEncryptionAlgorithm string
}

func (s *Server) reEncrypt(in reEncryptRequest) (any, *apiError) {
	if e := outOfRange("ciphertextBlob", len(in.CiphertextBlob), 1, maxCiphertext); e != nil {
		return nil, e
	}
	if e := symmetricOnly(in.SourceEncryptionAlgorithm); e != nil {
		return nil, e
	}
	from, source, plaintext, e := s.open(in.CiphertextBlob, in.SourceKeyId, in.SourceEncryptionContext)
	if e != nil {
		return nil, e
	}
	to, e := s.forEncryption(in.DestinationKeyId, in.DestinationEncryptionAlgorithm)
	if e != nil {
		return nil, e
	}
	destination := to.current(to.lag.Encrypt)
	return reEncryptReply{
		CiphertextBlob: to.seal(destination, plaintext, in.DestinationEncryptionContext),
		SourceKeyId:    from.arn, KeyId: to.arn,
		SourceKeyMaterialId:       s.materialID(source),
		DestinationKeyMaterialId:  s.materialID(destination),
		SourceEncryptionAlgorithm: symmetric, DestinationEncryptionAlgorithm: symmetric,
	}, nil
}

type createKeyRequest struct{ KeySpec, KeyUsage, Description, Origin string }

func (s *Server) createKey(in createKeyRequest) (any, *apiError) {
	if in.Origin != "" && in.Origin != "AWS_KMS" {
		return nil, refuse("UnsupportedOperationException", "awskmstest makes keys of origin AWS_KMS only")
	}
	spec, usage := symmetric, encryptDecrypt
	if in.KeySpec != "" {
		spec = in.KeySpec
	}
	if in.KeyUsage != "" {
		usage = in.KeyUsage
	}
	return describeKeyReply{s.metadata(s.newKey(spec, usage, in.Description))}, nil
}

type describeKeyReply struct{ KeyMetadata keyMetadata }

type keyMetadata struct {
	AWSAccountId          string
	Arn                   string
	CreationDate          epoch
	CurrentKeyMaterialId  string `json:",omitempty"`
	CustomerMasterKeySpec string
	DeletionDate          *epoch `json:",omitempty"`
	Description           string
	Enabled               bool
	EncryptionAlgorithms  []string `json:",omitempty"`
	KeyId                 string
	KeyManager            string
	KeySpec               string
	KeyState              string
	KeyUsage              string
	MultiRegion           bool
	Origin                string
}

func (s *Server) metadata(k *key) keyMetadata {
	md := keyMetadata{
		AWSAccountId: s.config.Account, Arn: k.arn, KeyId: k.id,
		CreationDate: epoch{k.created}, Description: k.description,
		CustomerMasterKeySpec: k.spec, KeySpec: k.spec, KeyUsage: k.usage,
		KeyState: k.state, Enabled: k.state == Enabled,
		KeyManager: "CUSTOMER", Origin: "AWS_KMS",
	}
	if k.state == PendingDeletion {
		md.DeletionDate = &epoch{k.deletion}
	}
	if k.spec == symmetric {
		md.EncryptionAlgorithms = []string{symmetric}
		md.CurrentKeyMaterialId = s.materialID(k.current(k.lag.DescribeKey))
	}
	return md
}

func (s *Server) describeKey(in keyRequest) (any, *apiError) {
	k, e := s.find(in.KeyId)
	if e != nil {
		return nil, e
	}
	return describeKeyReply{s.metadata(k)}, nil
}

func (s *Server) disableKey(in keyRequest) (any, *apiError) { return s.toggle(in, Disabled) }
func (s *Server) enableKey(in keyRequest) (any, *apiError)  { return s.toggle(in, Enabled) }

func (s *Server) toggle(in keyRequest, state string) (any, *apiError) {
	k, e := s.findByID(in.KeyId)
	if e != nil {
		return nil, e
	}
	if k.state != Enabled && k.state != Disabled {
		return nil, k.usable()
	}
	k.state = state
	return struct{}{}, nil
}

type scheduleKeyDeletionRequest struct {
	KeyId               string
	PendingWindowInDays *int
}

type scheduleKeyDeletionReply struct {
	KeyId               string
	KeyState            string
	DeletionDate        epoch
	PendingWindowInDays int
}

func (s *Server) scheduleKeyDeletion(in scheduleKeyDeletionRequest) (any, *apiError) {
	days := 30
	if in.PendingWindowInDays != nil {
		days = *in.PendingWindowInDays
	}
	if e := outOfRange("pendingWindowInDays", days, 7, 30); e != nil {
		return nil, e
	}
	k, e := s.findByID(in.KeyId)
	if e != nil {
		return nil, e
	}
	if k.state == PendingDeletion {
		return nil, k.usable()
	}
	k.state, k.deletion = PendingDeletion, time.Now().AddDate(0, 0, days)
	return scheduleKeyDeletionReply{k.arn, k.state, epoch{k.deletion}, days}, nil
}

func (s *Server) cancelKeyDeletion(in keyRequest) (any, *apiError) {
	k, e := s.findByID(in.KeyId)
	if e != nil {
		return nil, e
	}
	if k.state != PendingDeletion {
		return nil, refuse("KMSInvalidStateException", "%s is not pending deletion.", k.arn)
	}
	k.state = Disabled
	return keyReply{k.arn}, nil
}

func (s *Server) createAlias(in aliasRequest) (any, *apiError) {
	if _, exists := s.aliases[in.AliasName]; exists {
		return nil, refuse("AlreadyExistsException", "An alias with the name %s already exists", s.arn(in.AliasName))
	}
	return s.pointAlias(in)
}

func (s *Server) updateAlias(in aliasRequest) (any, *apiError) {
	if _, e := s.find(in.AliasName); e != nil {
		return nil, e
	}
	return s.pointAlias(in)
}

type aliasRequest struct{ AliasName, TargetKeyId string }

func (s *Server) pointAlias(in aliasRequest) (any, *apiError) {
	if !strings.HasPrefix(in.AliasName, "alias/") || strings.HasPrefix(in.AliasName, "alias/aws/") {
		return nil, refuse("InvalidAliasNameException", "%s is not a name for an alias of yours", in.AliasName)
	}
	k, e := s.findByID(in.TargetKeyId)
	if e != nil {
		return nil, e
	}
	s.aliases[in.AliasName] = k.id
	return struct{}{}, nil
}

func (s *Server) deleteAlias(in struct{ AliasName string }) (any, *apiError) {
	if _, e := s.find(in.AliasName); e != nil {
		return nil, e
	}
	delete(s.aliases, in.AliasName)
	return struct{}{}, nil
}

type listAliasesReply struct {
	Aliases   []aliasEntry
	Truncated bool
}

type aliasEntry struct{ AliasArn, AliasName, TargetKeyId string }

func (s *Server) listAliases(in keyRequest) (any, *apiError) {
	reply := listAliasesReply{Aliases: []aliasEntry{}}
	for _, alias := range slices.Sorted(maps.Keys(s.aliases)) {
		id := s.aliases[alias]
		if in.KeyId == "" || in.KeyId == id || in.KeyId == s.arn("key/"+id) {
			reply.Aliases = append(reply.Aliases, aliasEntry{s.arn(alias), alias, id})
		}
	}
	return reply, nil
}
