//! The codec of calls whose messages may be large: it passes requests on undecoded, and encodes answers.

use std::{marker::PhantomData, sync::Arc};

use bytes::{Buf, Bytes};
use prost::Message;
use skep_tensor::Charge;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use super::message::PREFIX_BYTES;
use crate::traced::SendingTrace;

/// Splits a message's charge off the charge of all that has arrived of its call.
pub(super) fn of_message(incoming: &Charge, message: &[u8]) -> Arc<Charge> {
    Arc::new(incoming.split(PREFIX_BYTES + message.len()))
}

/// An outgoing message and its charge.
pub(super) struct EncodedMessage<M> {
    pub(super) message: M,
    pub(super) charge: Option<Arc<Charge>>,
    /// Ends the trace of a request on a stream.
    pub(super) traced: Option<SendingTrace>,
}

/// Passes requests on undecoded, and encodes answers of type `M`.
pub(super) struct RawCodec<M> {
    leaving: Arc<Charge>,
    message: PhantomData<fn(M)>,
}

impl<M> RawCodec<M> {
    /// The charge of encoded messages is added to `leaving`.
    pub(super) fn new(leaving: &Arc<Charge>) -> Self {
        Self {
            leaving: Arc::clone(leaving),
            message: PhantomData,
        }
    }
}

impl<M: Message + 'static> Codec for RawCodec<M> {
    type Encode = EncodedMessage<M>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::new(&self.leaving)
    }

    fn decoder(&mut self) -> Self {
        Self::new(&self.leaving)
    }
}

impl<M: Message> Encoder for RawCodec<M> {
    type Item = EncodedMessage<M>;
    type Error = Status;

    fn encode(
        &mut self,
        item: EncodedMessage<M>,
        buffer: &mut EncodeBuf<'_>,
    ) -> Result<(), Status> {
        let written = item.message.encode(buffer);
        if let Some(charge) = &item.charge {
            self.leaving.absorb(charge);
        }
        written.map_err(|error| Status::internal(error.to_string()))
    }
}

impl<M> Decoder for RawCodec<M> {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
